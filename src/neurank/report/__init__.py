"""What people look at: pictures of scores and feature maps, and the folder that a run leaves."""
