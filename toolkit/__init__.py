"""Papers on image and video generation, each behind one command of one command line."""

__version__ = "0.1.0"
