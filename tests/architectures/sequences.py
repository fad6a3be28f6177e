"""Networks for sequences: convolutions in one dimension, TextCNN, recurrent cells."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from torch import nn
from torch.nn import functional

WORDS = 30


def conv1d_net():
    """Convolutions along time with BatchNorm; the mean over time is classified."""
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, stride=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, padding=1),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


class Causal(nn.Module):
    """WaveNet's layer: a dilated convolution of the past, tanh times sigmoid, two ways out."""

    def __init__(self, width, skip, dilation):
        super().__init__()
        self.past = dilation
        self.filter = nn.Conv1d(width, width, 2, dilation=dilation)
        self.gate = nn.Conv1d(width, width, 2, dilation=dilation)
        self.stay = nn.Conv1d(width, width, 1)
        self.leave = nn.Conv1d(width, skip, 1)

    def forward(self, x):
        padded = functional.pad(x, (self.past, 0))
        h = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.stay(h), self.leave(h)


class WaveNet(nn.Module):
    """Dilations double; what leaves each layer is summed.

    What the last layer passes on is computed and read by nobody, as in the original.
    """

    def __init__(self, width=8, skip=10):
        super().__init__()
        self.stem = nn.Conv1d(4, width, 1)
        self.layers = nn.ModuleList(Causal(width, skip, dilation) for dilation in (1, 2, 4))
        self.end = nn.Conv1d(skip, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        total = 0
        for layer in self.layers:
            x, left = layer(x)
            total = total + left
        h = functional.relu(self.end(functional.relu(total)))
        return self.head(h[:, :, -1])


class TextCNN(nn.Module):
    """Convolutions of several sizes over embedded words; each unit's maximum over time."""

    def __init__(self, width=8, each=6, sizes=(2, 3, 4)):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, each, size) for size in sizes)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(each * len(sizes), CLASSES)

    def forward(self, words):
        x = self.embedding(words).permute(0, 2, 1)  # (examples, width, words)
        maps = [functional.relu(conv(x)) for conv in self.convs]
        peaks = [functional.max_pool1d(one, one.size(2)).squeeze(2) for one in maps]
        return self.fc(self.dropout(torch.cat(peaks, dim=1)))


class Recurrent(nn.Module):
    """A recurrent module over the sequence; its last state passes a hidden layer.

    Of both directions, the mean of the states does: backwards, the last state is the first.
    """

    def __init__(self, cell, width, **options):
        super().__init__()
        self.cell = cell(4, width, batch_first=True, **options)
        self.hidden = nn.Linear(width * (2 if options.get("bidirectional") else 1), 12)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x):
        states, _ = self.cell(x)
        state = states.mean(dim=1) if self.cell.bidirectional else states[:, -1]
        return self.out(torch.relu(self.hidden(state)))


class Unrolled(nn.Module):
    """The same cell, made of two linear layers, at every step."""

    def __init__(self, width=10):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(width))
        self.input = nn.Linear(4, width)
        self.state = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x):
        state = self.start.expand(x.size(0), -1)
        for step in x.unbind(dim=1):
            state = torch.tanh(self.input(step) + self.state(state))
        return self.out(state)


SIGNAL, STEPS = (4, 32), (8, 4)

SEQUENCES = (
    Architecture("conv1d", conv1d_net, SIGNAL),
    Architecture("wavenet", WaveNet, SIGNAL),
    Architecture("text-cnn", TextCNN, (12,), vocabulary=WORDS),
    Architecture("lstm", lambda: Recurrent(nn.LSTM, 10), STEPS),
    Architecture("gru", lambda: Recurrent(nn.GRU, 8, bidirectional=True), STEPS),
    Architecture("unrolled-cell", Unrolled, STEPS),
)
