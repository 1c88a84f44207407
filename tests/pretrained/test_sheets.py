"""The command of every config that starts as in its paper runs with weights in the layout that it names."""

import importlib
import re
import shlex
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from drawn import draw
from weights import arrays_of, google, load_module, tiny_vit, write

from configs.loading import read_flags
from vidformers import ConfigError, build
from vidformers.pretrained import Init

SHEETS = sorted(path.stem for path in Path("configs").glob("*.py") if "def get_config" in path.read_text())
FROM_SCRATCH = ("stat_t16", "stat_t32", "stat_t64")  # their paper names no weights; the demo has no paper
VIT = dict(width=48, heads=12)
RESNET = dict(width=32, heads=4, depths=(1, 2, 1))
SWIN = dict(image_size=32, width=32, heads=2, depth=4, depths=(2, 2), window=(8, 4, 4))
CVT = dict(image_size=40, width=16, heads=1, depth=6, depths=(1, 2, 3))
HALF, IMAGENET = dict(mean=[0.5] * 3, std=[0.5] * 3), dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
# The weights that commands name: the fields that make the model small, its weights, and what the repository's
# config.json and preprocessor_config.json say of them.
WEIGHTS = {
    "ViT-B_16.npz": (VIT, lambda: archive_of_google(), {}),
    "timm/vit_small_patch16_224.augreg_in21k": (VIT | dict(heads=6), lambda: vit(48), dict(pretrained_cfg=HALF)),
    "timm/resnet50.tv_in1k": (RESNET, lambda: arrays_of("resnet"), dict(pretrained_cfg=IMAGENET)),
    "timm/swin_tiny_patch4_window7_224.ms_in1k": (SWIN, lambda: arrays_of("timm_swin"), dict(pretrained_cfg=IMAGENET)),
    "microsoft/cvt-13": (
        CVT,
        lambda: arrays_of("hf_cvt"),
        dict(num_heads=[1, 3, 6], image_mean=IMAGENET["mean"], image_std=IMAGENET["std"]),
    ),
}
# Parameters that start at random, since weights of images have none: TimeSformer's linear map after attention over
# time, the map after a ResNet, layers over frames, the dictionary, the head. Those of class attention are
# in the last stage.
IMAGES_LACK = r"^head|^readout|\.dictionary\.|\.extra\.|^encoder\.encoder\.out\."
COMMAND = r"^{}: (python main\.py (?:.*\\\n)*.*)$"


def vit(width):
    """Returns the arrays of a ViT of timm at 224 pixels, the values of which do not matter."""
    return tiny_vit(width=width, depth=12, patches=196, patch_size=16, classes=21843)


def archive_of_google():
    """Returns the arrays of a ViT of ImageNet-21k with the layer before the head that Google's archives have."""
    pre_logits = {"pre_logits/kernel": draw("pre_logits", (48, 48)), "pre_logits/bias": draw("pre_logits", (48,))}
    return google(vit(48), heads=12) | pre_logits


def commands(name, label):
    """Returns the arguments of each command of a sheet under a label, with a folder and a number of classes."""
    found = re.findall(COMMAND.format(label), importlib.import_module(f"configs.{name}").__doc__, flags=re.M)
    return [
        [word.replace("=DIR", "=data").replace("=N", "=5") for word in shlex.split(text.replace("\\\n", " "))[2:]]
        for text in found
    ]


@cache
def maker(section):
    return partial(build, **dict(section))


def loaded_as_in(arguments, folder, **init):
    """Returns the loaded weights of a command whose model is small, with further fields of `init`."""
    config, _ = read_flags(arguments, dict(workdir=None, mode=None))
    small = WEIGHTS[config.init.weights][0]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in config.model.to_dict().items()}
    fields |= {key: value for key, value in small.items() if key in fields}
    section = config.init.to_dict() | dict(weights=folder(config.init.weights)) | init
    return load_module.load(Init(**section), maker(tuple(fields.items()))), config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns the function that writes arrays in the layout of the weights that a command names, once."""

    @cache
    def folder(weights):
        (_, arrays, metadata), place = WEIGHTS[weights], tmp_path_factory.mktemp("weights")
        if not weights.endswith(".npz"):
            return write(place, arrays(), metadata)
        np.savez(place / weights, **arrays())
        return str(place / weights)

    return folder


@pytest.mark.parametrize("name", [name for name in SHEETS if name not in (*FROM_SCRATCH, "demo", "own")])
def test_the_command_as_in_the_paper_loads_its_weights_and_allows_no_more_than_it_must(name, folder):
    (arguments,) = commands(name, "As in the (?:model's )?paper")
    pretrained, config = loaded_as_in(arguments, folder)
    drawn = [row.parameter for row in pretrained.origins if row.note == "drawn"]
    class_blocks = max(row.parameter for row in pretrained.origins if ".stages." in row.parameter).split(".layers")[0]
    images_lack = IMAGES_LACK + (f"|^{class_blocks}" if config.model.get("class_blocks") else "")
    assert not [parameter for parameter in drawn if not re.search(images_lack, parameter)]
    assert {row.how for row in pretrained.origins} >= {"loaded", "new"}
    for word in config.init.allow:
        others = tuple(other for other in config.init.allow if other != word)
        with pytest.raises(ConfigError, match=re.escape(word) if word != "layers" else "no parameters for its layers"):
            loaded_as_in(arguments, folder, allow=others)


@pytest.mark.quick
@pytest.mark.parametrize("name", SHEETS)
def test_every_sheet_has_a_command_from_scratch(name):
    label = "As in the paper, from scratch" if name in FROM_SCRATCH else "From scratch"
    (arguments,) = commands(name, label)
    config, _ = read_flags(arguments, dict(workdir=None, mode=None))
    assert config.init.weights is None and name in arguments[0]
