"""A comparison that needs nothing but the package: a predicted start and a random one, on images
that ship with it.

    comparison.py  both starts at the same bits
    images.py      the images
    plot.py        the picture
"""
