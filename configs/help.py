"""What `python main.py --help` prints: a page with an example of each mode, and a page on the flags of each mode."""

from collections.abc import Sequence

from configs.loading import require

PAGE = """Trains a video-classification model on a folder of videos, and uses the trained model.

python main.py --config=FILE[:NAME] [--config.section.field=value ...] [--workdir=DIR]    starts a run
python main.py --workdir=DIR [--mode=MODE] [flags of the mode]                            continues or uses it

Your own videos, in a folder for each class below DIR:
  python main.py --config=configs/own.py --config.data.root=DIR --workdir=runs/mine
The demo, which renders its videos and trains in ten minutes on two cores:
  python main.py --config=configs/demo.py

MODE      what it does, with an example
train     trains, or continues the run; the default
            python main.py --workdir=runs/demo
eval      evaluates the run on the validation videos
            python main.py --workdir=runs/demo --mode=eval
predict   prints the classes of videos
            python main.py --workdir=runs/demo --mode=predict --video=data/motion_clips/val/000000.mp4
explain   draws which parts of a video a prediction rests on
            python main.py --workdir=runs/demo --mode=explain --video=data/motion_clips/val/000000.mp4 --out=pictures
export    writes a folder that runs without vidformers
            python main.py --workdir=runs/demo --mode=export --out=exported
summary   counts parameters and multiply-adds
            python main.py --config=configs/mevit_b16.py --mode=summary
plan      says whether a training fits, here or on other devices, and how fast it can be
            python main.py --config=configs/mevit_b16.py --mode=plan --topology=v5e:4x4

--help=MODE explains a mode and its flags. configs/base.py lists all fields. docs/own-videos.md begins at the beginning.
"""

MODES = {
    "train": """\
--mode=train, the default, trains a run, or continues the one in --workdir.

--config=FILE[:NAME]  a config file, such as those in configs/. Some files take a NAME: configs/demo.py takes a model,
                      and configs/kinetics400.py takes a config, such as mevit_b16. A run needs it only at its start.
--config.section.field=value
                      sets a field. configs/base.py lists all fields with their defaults.
--workdir=DIR         the folder of the run, by default runs/FILE_NAME. The same command continues the run in it.
--distributed=true    joins the processes of a TPU pod or cluster into one run. If there is no scheduler, give each
                      process --coordinator=HOST:PORT of the first process, --processes=N and --process=I, from 0 to
                      N-1: docs/launching.md.
""",
    "eval": """\
--mode=eval evaluates the latest checkpoint of a run on its validation videos, and writes eval_CLIPSxCROPS.json.

--workdir=DIR         the folder of the run. Its config is that of the run. Fields of `data` and `eval` may be given,
                      such as --config.data.val=other.csv, --config.eval.clips=4 or --config.eval.checkpoint=best.
--part=test           evaluates the test videos, or with --part=train those of training.
--distributed=true    as in --mode=train.
""",
    "predict": """\
--mode=predict prints the most likely classes of videos.

--workdir=DIR         the folder of the run.
--video=PATH          a video file, a folder of JPEG frames, a folder with videos at any depth, or a .txt or .csv list
                      with one path per line, with or without labels.
--out=FILE.jsonl      writes one line of JSON per video. If the command is repeated, the missing videos are appended.
--features=FILE.npz   writes the inputs of the classification head.
--shard=i/n           predicts only the videos i, i + n, i + 2n and so on, with i from 0, for several machines.
--merge=true          in place of --shard writes the file when all parts are written.

Long videos, cameras and streams (docs/predict.md):
--every=SECONDS       predicts a window every so many seconds of a long --video, which is decoded once. --out is a
                      folder then: it gets windows.jsonl, segments.jsonl, captions.vtt and timeline.png.
--video=0             the first camera; or the address of a stream, such as rtsp://HOST/PATH, udp://HOST:PORT or pipe:0,
                      or file:PATH for a file that still grows. Prints a line for each window, until it is stopped.
--window=SECONDS      length of a window, by default that of a clip in training.
--from=SECONDS        start of the part of the video that is predicted, by default its beginning.
--to=SECONDS          end of that part, by default the end of the video.
--threshold=P         least probability of a class in a segment, by default 0.5.
--shortest=SECONDS    leaves out shorter segments, by default those shorter than --every.
""",
    "explain": """\
--mode=explain draws which parts of each video support a class.

--workdir=DIR         the folder of the run.
--video=PATH          as in --mode=predict.
--out=DIR             the folder for the pictures.
--target=CLASS        the class, by default the most likely one.
--layer=N             draws the attention weights of frames in layer N of VTN's temporal encoder, by default the last.
--beside=FOLDER       a run or an export: also draws the attention of that model on the same clip.
""",
    "export": """\
--mode=export writes a folder that runs without vidformers.

--workdir=DIR         the folder of the run.
--out=DIR             the folder to write: the parameters as safetensors, the model as a program, and a README.
""",
    "summary": """\
--mode=summary prints the number of parameters and of multiply-adds. The last line is one JSON object.

--config=FILE[:NAME]  a config file, or --workdir=DIR, the folder of a run. With configs/own.py and
                      --config.data.root=DIR, the model is that which a run would have.
--keys=FILE.png       draws which keys a query attends to in every attention of the model.
--query=FRAME,ROW,COLUMN
                      the patch of the query, from 0 on, by default the one in the middle.
""",
    "plan": """\
--mode=plan compiles the training step. It prints whether the step fits, the largest batch that fits, the least time
of a step, and how many frames must be decoded per second. The last line is one JSON object. No data need exist.

--config=FILE[:NAME]  a config file, or --workdir=DIR, the folder of a run. With configs/own.py and
                      --config.data.root=DIR, prints what a run would choose, and plans that run.
--topology=v5e:4x4    TPUs or GPUs that need not be here, by default the devices that are here.
--estimate=true       adds the estimate of the TPU compiler.
--largest=false       leaves out the largest batch.
--train_videos=N      the number of training videos.
--decode_rate=CLIPS   what one core decodes per second. docs/ahead.md explains the figures.
""",
}


WAYS_ON = """{file} sets a model and how it is trained. It needs data:

The demo, which renders its videos and trains in minutes:
  python main.py --config=configs/demo.py:{model}
Your own videos, in a folder for each class below DIR, for ten minutes:
  python main.py --config=configs/own.py:{model} --config.data.root=DIR
A known data set, here UCF101 in DIR, as downloaded:
  python main.py --config=configs/ucf101.py:{name} --config.data.root=DIR

"""


def requested_page(arguments: Sequence[str]) -> str | None:
    """Returns the page that a command line asks for, or None if it asks for none.

    Without arguments, with -h and with --help it is `PAGE`; with --help=MODE, and with --help beside --mode=MODE, it is
    that of the mode.

    Raises:
        FlagError: there is no such mode.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if not words:
        return PAGE
    if "--help" not in words and "-h" not in words:
        return None
    names = [after for word, after in zip(words, words[1:], strict=False) if word in ("--help", "-h", "--mode")]
    mode = next((name for name in names if not name.startswith("-")), None)
    require(mode is None or mode in MODES, f"--help={mode} must be one of {', '.join(MODES)}.")
    return PAGE if mode is None else MODES[mode]
