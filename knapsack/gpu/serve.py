"""The models of a run behind one address: ``vllm serve`` with the base and the adapters by their names.

    python -m knapsack.gpu.serve runs/paper
    python run_notebooks.py --profile paper --from 4 -p server=http://127.0.0.1:8000/v1

vLLM pins another torch than the report, so it lives in an environment of its own (``--vllm`` names its program). What
acts on a reply is as in the report: the chat template of the training, no sampling parameter but those of a request,
the run's context length; adapters stay beside the base instead of being merged, so roundings differ. Arguments behind
``--`` go to vLLM as they are, such as ``-- --data-parallel-size 2``: several GPUs or machines are its business. The
options were taken from the source of vLLM 0.33.0; the command has not been run on a GPU yet.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from knapsack.preflight.checks import local_folder
from knapsack.runs import Run, check, find_adapter, open_run, project_folder, read_json, write_text
from knapsack.runtime import KINDS

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # all that vLLM has for --max-lora-rank
INSTALL = """there is no program {!r}: vLLM lives in an environment of its own, because it pins another torch,
  python3 -m venv .venv-vllm
  .venv-vllm/bin/pip install vllm==0.33.0
and is then found with --vllm .venv-vllm/bin/vllm"""


def serve_command(
    run: Run, vllm: str, base: str | None = None, context_length: int | None = None, port: int = 8000
) -> list[str]:
    """The arguments that serve a run: "base", and the adapters that notebook 03 trained (by default the two kinds).

    ``base`` and ``context_length`` (tokens) default to what the run's manifest or its profile says. Raises
    FileNotFoundError (base or adapter missing), CorruptFileError (adapter damaged) and ValueError (not known here, or
    not served by vLLM), each with the remedy.
    """
    manifest = run.read_manifest()
    trained = manifest.get("03_finetune", {}).get("parameters", {})
    base, names = base or trained.get("base"), [*(trained.get("adapters") or KINDS)]
    if not base:
        raise ValueError(f"{run.manifest} does not say which base was trained: run notebook 03, or give --base")
    source = local_folder(base) or base
    if source == base and base.startswith(("/", "~", ".")):
        raise FileNotFoundError(f"base = {base!r}: there is no such folder; give another with --base")
    ranks = []
    for folder in map(run.adapter, names):
        check(find_adapter(folder), "run notebook 03 again")
        ranks.append(read_json(folder / "adapter_config.json")["r"])
    if max(ranks) > RANKS[-1]:
        raise ValueError(f"the adapters have rank {max(ranks)}: vLLM serves no more than {RANKS[-1]}")
    modules = [{"name": name, "path": str(run.adapter(name)), "base_model_name": "base"} for name in names]
    return [
        *(vllm, "serve", str(source), "--served-model-name", "base"),
        *("--enable-lora", "--lora-modules", *map(json.dumps, modules)),
        *("--max-loras", str(len(modules)), "--max-lora-rank", str(next(r for r in RANKS if r >= max(ranks)))),
        *("--max-model-len", str(context_length or _context_length(run, manifest)), "--dtype", "bfloat16"),
        *("--generation-config", "vllm"),  # else the base's own top_p and top_k would act, which ours do not know
        *("--chat-template", str(_chat_template(run, names[0], source)), "--enable-prefix-caching"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _context_length(run: Run, manifest: dict) -> int:
    """Notebook 04's context length: of its record, or, before it ran, of the ``-p`` and the profile of the run."""
    asked = manifest.get("run_notebooks", {}).get("parameters", {})
    profile = project_folder() / "knapsack" / "profiles" / f"{asked.get('profile')}.yaml"
    known = yaml.safe_load(profile.read_text(encoding="utf-8"))["04_evaluate"] if profile.exists() else {}
    known |= dict(text.removeprefix("04_evaluate.").split("=", 1) for text in asked.get("set", []))
    known |= manifest.get("04_evaluate", {}).get("parameters", {})
    if "context_length" not in known:
        raise ValueError(f"{run.manifest} does not say how long a conversation may be: give --context-length")
    return int(known["context_length"])


def _chat_template(run: Run, name: str, source: Path | str) -> Path:
    """The chat template that training wrote; for adapters that have none, a new file with the same text."""
    path = run.adapter(name) / "chat_template.jinja"
    if not path.exists():
        from transformers import AutoTokenizer

        from knapsack.chat_template import template_of

        path = run.folder / "training" / "chat_template.jinja"
        write_text(path, template_of(AutoTokenizer.from_pretrained(source)).jinja)
    return path


def main(arguments: Sequence[str]) -> int:
    """Become the server. Returns 2, and says why on stderr, if it cannot be started."""
    end = [*arguments, "--"].index("--")  # what follows is vLLM's
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m knapsack.gpu.serve", description=__doc__, formatter_class=as_written)
    parser.add_argument("run", type=Path, help="the run's folder, in which notebook 03 is done")
    parser.add_argument("--vllm", default="vllm", help="vLLM's program (default: the one on the PATH)")
    parser.add_argument("--base", help="the base that was trained (default: as recorded in the run)")
    parser.add_argument("--context-length", type=int, help="tokens of a conversation (default: as in the run)")
    parser.add_argument("--port", type=int, default=8000, help="on this machine alone (default 8000)")
    parser.add_argument("--print", action="store_true", help="print the command instead of starting it")
    options = parser.parse_args(arguments[:end])
    try:
        folder, vllm = options.run.expanduser().resolve(), shutil.which(os.path.expanduser(options.vllm))
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no run in {folder}")
        if vllm is None and not options.print:
            raise FileNotFoundError(INSTALL.format(options.vllm))
        chosen = {name: value for name, value in vars(options).items() if name in ("base", "context_length", "port")}
        command = serve_command(open_run(folder), vllm or options.vllm, **chosen)
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    command += arguments[end + 1 :]
    print(shlex.join(command), flush=True)
    if options.print:
        return 0
    os.execve(command[0], command, os.environ | {"VLLM_NO_USAGE_STATS": "1"})  # nothing is reported anywhere


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
