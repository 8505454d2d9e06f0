"""Papers on image and video generation, each behind one command of one command line."""

from toolkit.installation import __version__ as __version__
