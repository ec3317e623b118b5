"""From `sys.argv` to a verb: the list of verbs, the help pages and the exit codes.

Exit codes: 0 done; 1 a bug in vlascope; 2 the request cannot be carried out (message on stderr); 3 done in
part (the message says what is missing); 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import VlascopeError, nearest_text

OK, FAILED, PARTIAL, INTERRUPTED = 0, 2, 3, 130


@dataclass(frozen=True)
class Verb:
    """A word of the command line; `module` holds the dataclass `Args` and `run(args) -> exit code`.

    A verb with `verbs` has no module: it is a group such as `vlascope sim`.
    """

    name: str
    summary: str
    module: str = ""
    example: str = ""
    verbs: tuple[Verb, ...] = ()


VERBS = (
    Verb(
        "demo", "show what a small robot model sees in two embedded episodes", "demo", "vlascope demo --open"
    ),
    Verb(
        "capture",
        "read a model's tokens for images, a video or robot episodes into a run",
        "capture",
        "vlascope capture mini-vla photos/ -o runs/first",
    ),
    Verb(
        "cut",
        "cut a run's tokens into concepts; draw grid, strip, words and videos",
        "cut",
        "vlascope cut runs/first",
    ),
    Verb(
        "report",
        "write everything about a run into one offline HTML page",
        "report",
        "vlascope report runs/first --open",
    ),
    Verb(
        "app",
        "explore a run in the browser; compare two with one palette",
        "app",
        "vlascope app runs/first",
    ),
    Verb(
        "trace",
        "follow a concept through the layers: where it appears and is lost",
        "trace",
        "vlascope trace runs/first --label colour",
    ),
    Verb(
        "debug",
        "similar images: do a layer's groups follow the truth or the model's answers",
        "debug",
        "vlascope debug runs/first --label count",
    ),
    Verb(
        "probe",
        "what can be read off each layer on episodes held out, now or some steps ahead",
        "probe",
        "vlascope probe runs/first --target state",
    ),
    Verb(
        "sensitivity",
        "change image, verb or noun: how far do features and actions move",
        "sensitivity",
        "vlascope sensitivity mini-vla demo:pick",
    ),
    Verb(
        "nave",
        "cluster patches by several depths at once, per image or jointly",
        "nave",
        "vlascope nave runs/first --k 3 5 8",
    ),
    Verb(
        "eval",
        "score segmentation and localisation methods against masks, boxes, outlines",
        "evaluate",
        "vlascope eval runs/coco --truth coco:data/coco",
    ),
    Verb(
        "concepts",
        "which nouns and verbs of captions a layer can find in other images",
        "concepts",
        "vlascope concepts runs/coco",
    ),
    Verb(
        "temporal",
        "follow concepts through episodes: change points, events, early warning",
        "temporal",
        "vlascope temporal runs/first --words language.5",
    ),
    Verb(
        "sae",
        "sparse dictionaries of a site: train, eval, cards, discover",
        verbs=(
            Verb(
                "train",
                "train a nested dictionary on a site's tokens",
                "sae_train",
                "vlascope sae train runs/first --site language.4",
            ),
            Verb(
                "eval",
                "how well a dictionary explains a run's tokens, level by level",
                "sae_eval",
                "vlascope sae eval runs/first DICTIONARY",
            ),
            Verb(
                "cards",
                "what each latent responds to, with maps and relatives",
                "sae_cards",
                "vlascope sae cards runs/first DICTIONARY",
            ),
            Verb(
                "discover",
                "latents of one factor that do not follow another",
                "sae_discover",
                "vlascope sae discover runs/first DICTIONARY --factors target_material target_colour",
            ),
        ),
    ),
    Verb(
        "monitor",
        "stop a model that no longer sees what it knows: fit, score, watch",
        verbs=(
            Verb(
                "fit",
                "learn from clean episodes what tokens usually look like",
                "monitor_fit",
                "vlascope monitor fit runs/clean DICTIONARY",
            ),
            Verb(
                "score",
                "which episodes raise an alarm: when, where, at which level",
                "monitor_score",
                "vlascope monitor score runs/new MONITOR",
            ),
            Verb(
                "watch",
                "let a model act in the simulator until the monitor vetoes",
                "monitor_watch",
                "vlascope monitor watch mini-vla MONITOR --episodes 20",
            ),
        ),
    ),
    Verb(
        "semantics",
        "words beside patches: which patches a noun of the prompt points at",
        "semantics",
        "vlascope semantics runs/first --site language.2",
    ),
    Verb(
        "attribute",
        "which channels make a concept, which patches move the action",
        "attribute",
        "vlascope attribute mini-vla demo:pick --dof dy",
    ),
    Verb(
        "steer",
        "push latents or directions and measure what the answers do",
        "steer",
        "vlascope steer mini-vla demo:pick --site language.1 --words red blue",
    ),
    Verb(
        "knockout",
        "cut attention or remove modules: how far do the actions move",
        "knockout",
        "vlascope knockout mini-vla demo:pick --cut text:action patch:action",
    ),
    Verb(
        "patch",
        "restore one layer after a changed word or picture: what comes back",
        "patch",
        "vlascope patch mini-vla demo:pick --change noun",
    ),
    Verb(
        "rollout",
        "let a model act in closed loop with and without a change, in pairs",
        "rollout",
        "vlascope rollout mini-vla --cut text:action",
    ),
    Verb(
        "break",
        "search the smallest change of scene or wording that makes a model fail",
        "break",
        "vlascope break mini-vla --scenes 3",
    ),
    Verb(
        "label",
        "list episodes, record success, failure or drop, write out those to keep",
        "label",
        "vlascope label data/pick --failure ep0003 --reason slipped --sheet sheet.png",
    ),
    Verb(
        "frames",
        "write frames of a video as images",
        "frames",
        "vlascope frames clip.mp4 -o frames --every 0.5s",
    ),
    Verb("models", "list the model families and the embedded models", "models"),
    Verb("sites", "list the places of a model that can be read", "sites", "vlascope sites mini-vla"),
    Verb("info", "say what a run holds and whether it is whole", "info", "vlascope info runs/first"),
    Verb("ls", "list the runs in a folder", "ls", "vlascope ls runs"),
    Verb(
        "verify",
        "compare every byte of a run with its checksums, mend what is damaged",
        "verify",
        "vlascope verify runs/first --repair",
    ),
    Verb(
        "diff",
        "compare two runs: settings, items, tokens, answers",
        "diff",
        "vlascope diff runs/first runs/second",
    ),
    Verb(
        "export",
        "write a run as safetensors files or as a LeRobot dataset",
        "export",
        "vlascope export safetensors runs/first -o tokens",
    ),
    Verb("gc", "free space in runs: leftovers, derived results", "gc", "vlascope gc runs/first --dry-run"),
    Verb(
        "sim",
        "the table-top simulator: record, preview, rollout",
        verbs=(
            Verb(
                "record",
                "record labelled episodes (LeRobot v3) or a factorial image set",
                "sim_record",
                "vlascope sim record -o data/pick --episodes 20",
            ),
            Verb(
                "preview",
                "draw a contact sheet of scenes",
                "sim_preview",
                "vlascope sim preview -o sheet.png",
            ),
            Verb(
                "rollout",
                "let a model act in the simulator and count its successes",
                "sim_rollout",
                "vlascope sim rollout mini-vla --episodes 20 --seed 0",
            ),
        ),
    ),
    Verb("doctor", "say what is installed, missing or broken, and how to mend it", "doctor"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _version() if words[:1] in (["--version"], ["-V"]) else _dispatch("vlascope", VERBS, words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `vlascope --help | head`: the reader has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _version() -> int:
    from .._version import __version__

    print(f"vlascope {__version__}")
    return OK


def _dispatch(prog: str, verbs: Sequence[Verb], words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_page(prog, verbs))
        return OK
    by_name = {verb.name: verb for verb in verbs}
    verb = by_name.get(words[0])
    if verb is None:
        kind = "option" if words[0].startswith("-") else "verb"
        print(
            f"{prog}: there is no {kind} '{words[0]}'.{nearest_text(words[0], by_name)} "
            f"See `{prog} --help` for the list.",
            file=sys.stderr,
        )
        return FAILED
    if verb.verbs:
        return _dispatch(f"{prog} {verb.name}", verb.verbs, words[1:])
    return _run(f"{prog} {verb.name}", verb, words[1:])


def help_page(prog: str, verbs: Sequence[Verb]) -> str:
    """Return the page that lists `verbs`, in the order of the main job."""
    width = max(len(verb.name) for verb in verbs)
    lines = [f"usage: {prog} VERB [options]", ""]
    if prog == "vlascope":
        lines += ["See what a vision or robot model sees. Verbs, in the order of the main job:", ""]
    lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs]
    lines += ["", f"`{prog} VERB --help` explains one verb."]
    if prog == "vlascope":
        lines += ["`vlascope --version` prints the version. VLASCOPE_DEBUG=1 shows the stack of an error."]
    return "\n".join(lines)


def _run(prog: str, verb: Verb, words: list[str]) -> int:
    import tyro

    from ..progress import watch
    from ._common import COMMAND

    module = importlib.import_module(f".{verb.module}", __package__)
    show_stack = bool(os.environ.get("VLASCOPE_DEBUG")) or "--traceback" in words
    example = f"\n\nExample: {verb.example}" if verb.example else ""
    try:
        preset = module.preset(words) if hasattr(module, "preset") else None
        args = tyro.cli(
            module.Args,
            prog=prog,
            args=words,
            default=preset,
            description=f"{(module.Args.__doc__ or '').strip()}{example}",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if (n_shuffles := getattr(args, "permutations", None)) is not None:
            from ..measure.multiple import enough_shuffles

            enough_shuffles(n_shuffles)
        COMMAND.set((*prog.split(), *words))
        _set_up_logs(quiet=args.quiet)
        watch(not args.quiet)
        try:
            return module.run(args)
        finally:
            watch(False)
    except SystemExit as stop:  # tyro prints help (0) or a usage error (2) and stops
        return stop.code if isinstance(stop.code, int) else FAILED
    except VlascopeError as error:
        if show_stack:
            raise
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        # An interrupted capture says in its message how to go on.
        print(f"\n{prog}: {str(stop) or 'interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception:
        print(f"{prog}: this is a bug in vlascope; the report below helps to mend it.", file=sys.stderr)
        raise


def _set_up_logs(*, quiet: bool) -> None:
    """Send warnings and logs to stderr, one line each, without the path of our own source."""
    import logging
    import warnings

    logging.basicConfig(
        level=logging.ERROR if quiet else logging.WARNING, format="%(levelname)s: %(message)s"
    )

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {message}", file=file or sys.stderr)

    warnings.showwarning = show
