"""Tables, figures and pages from run folders and analysis files. Does not import torch."""
