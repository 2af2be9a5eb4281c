"""Read run folders and match them with configurations; the paper's tables as data. Does not import torch."""
