"""Steps of Hugging Face's TimeSformer, ViViT or VideoMAE of base size, in training or evaluation. It works on request.

Runs where torch and transformers are installed, without vidformers. Another program drives it through stdin, so that
both can take turns on the same machine:

    start   prints, after one warm-up step, a JSON line: versions, device, parameters, settings
    step    runs one step and prints {"seconds": ...}, on CUDA with "peak_bytes" too
    quit    ends it, and so does the end of stdin

The models take 8 frames of 224x224 in patches of 16x16, of one frame (TimeSformer, divided attention) or two (ViViT,
VideoMAE, joint attention), without dropout, for 400 classes. Attention is PyTorch's scaled-dot-product attention if
the model supports it. A training step is zero_grad, forward, cross-entropy, backward and AdamW. bfloat16 is autocast:
the parameters stay float32.
"""

import argparse
import json
import sys
import time

import torch
import transformers

MODELS = {  # prefix of the classes in transformers, and the fields that differ from their defaults
    "timesformer": ("Timesformer", {}),
    "vivit": ("Vivit", dict(num_frames=8, tubelet_size=[2, 16, 16])),
    "videomae": ("VideoMAE", dict(num_frames=8, tubelet_size=2)),
}


def arguments():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", choices=list(MODELS), default="timesformer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--mode", choices=["train", "eval"], default="train")
    parser.add_argument("--batch", type=int, default=1, help="clips per step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of one operation")
    parser.add_argument("--compile", action="store_true", help="run the model under torch.compile")
    return parser.parse_args()


def build(args):
    """Returns the model and a function without arguments that runs one step."""
    name, fields = MODELS[args.model]
    config = getattr(transformers, f"{name}Config")(num_labels=400, **fields)
    model = getattr(transformers, f"{name}ForVideoClassification")(config).to(args.device)
    model.train(args.mode == "train")
    forward = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    shape = (args.batch, config.num_frames, 3, config.image_size, config.image_size)
    video = torch.randn(shape, device=args.device)
    label = torch.randint(config.num_labels, (args.batch,), device=args.device)
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")

    def train():
        optimizer.zero_grad()
        with autocast:
            loss = torch.nn.functional.cross_entropy(forward(video).logits, label)
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def evaluate():
        with autocast:
            forward(video)

    return model, {"train": train, "eval": evaluate}[args.mode]


def timed(step, device):
    """Runs one step and waits for its result. Returns its seconds, and on CUDA the peak memory."""
    started = time.perf_counter()
    step()
    if device == "cpu":
        return {"seconds": time.perf_counter() - started}
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - started, "peak_bytes": torch.cuda.max_memory_allocated()}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, step = build(args)
    timed(step, args.device)
    start = vars(args) | {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    print(json.dumps(start), flush=True)
    for line in sys.stdin:
        match line.strip():
            case "step":
                print(json.dumps(timed(step, args.device)), flush=True)
            case "quit":
                break
            case other:
                sys.exit(f"Commands are step and quit, not {other!r}.")


if __name__ == "__main__":
    main()
