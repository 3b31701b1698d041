"""Credit: the weight and the advantage of each response token, from teacher scores. Torch only; README.md explains."""
