"""Five July 2024 papers on image and video generation behind one command line."""

__version__ = "0.1.0"
