"""Score novel views by a named protocol: `python eval_nvs/run.py --bench dl3dv --root DATA --weights giant`.

Two stages. Pictures of the targets are stored below OUT, one folder a scene; then they are scored. A run that was
interrupted goes on where it stopped, and --score-only scores again what is stored. OUT gets results.json, table.md and
report.html. `accelerate launch eval_nvs/run.py ...` deals the scenes out to all processes and GPUs.
docs/nvs-benchmark.md tells the protocol, the data and how to read the results.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval_nvs import results
from eval_nvs.benches import BENCHES, Bench, open_bench
from eval_nvs.indices import indexed, read_indices
from eval_nvs.methods import Options, load
from eval_nvs.processes import Processes, fail
from eval_nvs.protocol import PROTOCOLS, Protocol, Split, split
from eval_nvs.report import write_report
from eval_nvs.scores import Metrics
from eval_nvs.stages import predict, score
from geometry.scene import Scene
from splat.atomic import whole_file

RESULTS, TABLE, REPORT = "results.json", "table.md", "report.html"


@dataclass(frozen=True)
class Args:
    bench: Literal[BENCHES]
    """dl3dv, tnt and megadepth as the paper has them; sample needs no data; folder is any scene or folder of scenes"""
    root: Path | None = None
    """where the benchmark lies"""
    what: Annotated[Options, tyro.conf.arg(name="")] = Options()
    protocol: Literal[tuple(PROTOCOLS)] = "paper"
    """what is input, what is target, through which cameras"""
    indices: Path | None = None
    """index file (JSON) that chooses the views in place of the protocol"""
    scenes: tuple[str, ...] = ()
    """only these scenes"""
    limit: int | None = None
    """only the first so many scenes"""
    out: Path | None = None
    """folder of the results; default: out/BENCH-PROTOCOL-METHOD"""
    lpips: tuple[Literal["vgg", "alex"], ...] = ("vgg", "alex")
    """networks of LPIPS"""
    lpips_weights: tuple[Path, ...] = ()
    """their backbones, or a folder of them (.npz, .safetensors); default: those that torchvision keeps"""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    score_only: bool = False
    """score what is stored, predict nothing"""
    overwrite: bool = False
    """predict again what is stored"""
    allow_missing: bool = False
    """give the mean although scenes are missing or failed"""
    report: bool = True
    """write report.html and its pictures"""


def main(args: Args) -> int:
    """Run and return the exit code: 1 where a scene failed or the mean is refused."""
    processes = Processes(args.device)
    bench, protocol = open_bench(args.bench, args.root), PROTOCOLS[args.protocol]
    opener = SceneOpener(bench, protocol, args.indices)
    if args.indices is not None:
        protocol = indexed(protocol, args.indices)
    scenes = chosen_scenes(args, bench)
    out = args.out or Path("out") / f"{args.bench}-{args.protocol}-{short_name(args.what)}"
    device = processes.device(args.device)
    metrics = Metrics(args.lpips, args.lpips_weights, device)
    mine, failed = processes.share(scenes), {}
    if not args.score_only:
        method = load(args.what, protocol, device)
        if method.needs_poses and protocol.cameras != "given":
            raise ValueError(f"--method {args.what.method} needs poses, and protocol '{protocol.name}' gives none")
        out.mkdir(parents=True, exist_ok=True)
        failed, _ = predict(method, protocol, opener, mine, out, device, args.overwrite, processes.first)
    rest = [scene for scene in mine if scene not in failed]
    scored, unscored = score(metrics, protocol, opener, rest, out, processes.first)
    scored = processes.gather(scored)
    failed = dict(processes.gather(list((failed | unscored).items())))
    code = 0
    if processes.first:
        failed = {scene: failed[scene] for scene in scenes if scene in failed}
        subset = bool(args.scenes) or args.limit is not None
        result = results.make(
            bench, scenes, subset, protocol, scored, failed, metrics.about, metrics.left_out, args.allow_missing
        )
        write_results(result, out)
        if args.report:
            write_report(result, opener, out, REPORT)
        print(results.table(result))
        print(f"{out / RESULTS}, {TABLE}" + f", {REPORT}" * args.report)
        code = int(bool(failed) or result["mean"] is None)
    code = max(processes.gather([code]))
    processes.end()
    return code


@dataclass(frozen=True)
class SceneOpener:
    """Opens a scene of the benchmark and chooses its views: by the protocol, or by the index file."""

    bench: Bench
    protocol: Protocol
    indices: Path | None

    def __call__(self, scene: str) -> tuple[Scene, Split]:
        opened = self.bench.open(scene)
        if self.indices is None:
            return opened, split(opened, self.protocol)
        return opened, read_indices(self.indices, self.bench, self.protocol, [scene])[scene]


def chosen_scenes(args: Args, bench: Bench) -> list[str]:
    """The scenes of this run, in the benchmark's order. ValueError for a name that it does not have."""
    known = dict.fromkeys((*bench.scenes, *bench.others))
    unknown = [scene for scene in args.scenes if scene not in known]
    if unknown:
        raise ValueError(f"{bench.root}: no scene {unknown[0]} in benchmark {bench.name}; there are {', '.join(known)}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be 1 or more, got {args.limit}")
    scenes = [scene for scene in known if scene in args.scenes] if args.scenes else list(bench.scenes)
    return scenes[: args.limit]


def short_name(options: Options) -> str:
    """The method as part of a folder's name."""
    if options.method in ("ours", "ffgs"):
        name = Path(options.weights).stem or options.method
        name += "" if options.cameras_from == "decoder" else f"-{options.cameras_from}"
        return f"{name}-refine{options.refine}" if options.refine else name
    return options.method


def write_results(result: dict, out: Path) -> None:
    for name, text in ((RESULTS, json.dumps(result, indent=1) + "\n"), (TABLE, results.table(result))):
        with whole_file(out / name) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    # A batch system's time limit ends the run as Ctrl-C does: what is finished stays, nothing is half written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(tyro.cli(Args, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))))
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here", 130)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        fail(f"error: {' '.join(str(error).split())}")
