"""The SH rows of the paper's Table 1, from the authors' own weights.

    python experiments/neuron_ranking/printed_shapley.py

The value is scored on test pictures: the training pictures of these weights are unknown, and the
paper's rankings are compared with, nothing is chosen by them. Removal is ``"parameters"``, the
paper's procedure.
"""

import argparse

from authors import FULL, authors_net, data_folder

import neurank as nr

PRINTED = {
    "mnist": {
        "c1": (1, 8, 7, 4, 6),
        "c3": (2, 8, 9, 19, 4),
        "c5": (56, 86, 25, 64, 33, 17, 23, 96, 52, 81),
        "f6": (1, 7, 2, 3, 0),
    },
    "fashion-mnist": {
        "c1": (0, 7, 6, 5, 1),
        "c3": (5, 10, 0, 13, 9),
        "c5": (60, 13, 43, 88, 94, 20, 70, 44, 32, 64),
        "f6": (5, 1, 8, 9, 7),
    },
}
EXACT = ["c1", "c3", "f6"]


def ranked(name: str, pictures: int, passes: int) -> nr.Ranking:
    """Rank all four layers: c5 by sampling, the others exactly."""
    model = authors_net(FULL[name], data_folder())
    spec = f"mnist:{data_folder() / 'mnist'}" if name == "mnist" else name
    test = nr.data.load(spec).test.first(pictures)
    exact = nr.rank(model, test, nr.ExactShapley(), layers=EXACT, removal="parameters")
    method = nr.PermutationShapley(passes=passes)
    sampled = nr.rank(model, test, method, layers=["c5"], removal="parameters")
    return exact.merge(sampled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=100, help="permutations per picture for c5")
    arguments = parser.parse_args()
    for name, rows in PRINTED.items():
        ranking = ranked(name, arguments.pictures, arguments.passes)
        print(f"\n{name}, first {arguments.pictures} test pictures, removal='parameters'")
        for layer, printed in rows.items():
            found = ranking.top(len(printed), layer)
            common = len(set(found) & set(printed))
            print(f"  {layer}  printed {', '.join(map(str, printed))}")
            print(
                f"      found   {', '.join(map(str, found))}   ({common} of {len(printed)} common)"
            )
        for part in ranking.provenance["parts"]:
            for layer, record in part["by_layer"].items():
                print(f"  {layer}: {record['coalitions']:.3g} coalitions, {record['seconds']} s")
        for layer in ("c3",):
            scores = ranking[layer].scores
            nearest = [f"{unit}: {scores[unit]:.5f}" for unit in ranking.top(7, layer)]
            print(f"  {layer} values: {', '.join(nearest)}")


if __name__ == "__main__":
    main()
