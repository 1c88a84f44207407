"""Writes tfds/: a data set of numbered videos, prepared by TensorFlow Datasets as ArrayRecord files.

To write it again, where TensorFlow is installed beside requirements.txt:

    PYTHONPATH=tests python tests/goldens/make_tfds.py
"""

import shutil
from pathlib import Path

import tensorflow_datasets as tfds
from numbered import HEIGHT, WIDTH, picture

FOLDER = Path(__file__).with_name("tfds")


class Numbered(tfds.core.GeneratorBasedBuilder):
    """Video n shows the numbers 10 n, 10 n + 1, ...; its class is n mod 3."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Video(shape=(None, HEIGHT, WIDTH, 3)),
                    "label": tfds.features.ClassLabel(names=["left", "right", "stay"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(7)), "test": self._generate_examples(range(7, 10))}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"video": [picture(10 * number + i) for i in range(4 + number)], "label": number % 3}


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    builder = Numbered(data_dir=FOLDER, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    print(*sorted(path for path in FOLDER.rglob("*") if path.is_file()), sep="\n")
