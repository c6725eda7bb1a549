"""How fast it is, and how fast it could be: what the scripts `benchmark_throughput`, `ab_decode` and `scale_table` run.

bound.py       the arithmetic bound of a generation, and the two rates of a device that it needs
shapes.py      published models' shapes with random parameters made on the device: nothing is downloaded
throughput.py  one shape at several batch sizes, beside the bound and by part
decoding.py    the decode step in other forms: scanned layers, other cache layouts, fused products
ab.py          those forms and others against ours, in turns
scale.py       memory and bound of large models on many devices, from the formulas alone
timing.py      seconds and ratios of things that take turns
"""
