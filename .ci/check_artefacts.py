"""Checks the installed wheel and the Flower app bundle, with the Python of an environment that holds only the wheel."""

import importlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

FOLDERS = ("client", "fedretrain", "server", "strategies")


def check_wheel(checkout: Path) -> None:
    """Every package is imported from the environment, with every module in it, and the command answers."""
    for name in (*FOLDERS, "simulations"):
        package = importlib.import_module(name)
        home = Path(package.__file__ or "").parent
        if not home.is_relative_to(sys.prefix):
            sys.exit(f"{name} was imported from {home}, not from the wheel")
        for module in sorted(home.rglob("*.py")):
            parts = [name, *module.relative_to(home).with_suffix("").parts]
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
        missing = {p.relative_to(checkout / name).as_posix() for p in (checkout / name).rglob("*.py")}
        missing -= {p.relative_to(home).as_posix() for p in home.rglob("*.py")}
        if missing:
            sys.exit(f"the wheel lacks {name}/{sorted(missing)}")
    subprocess.run([Path(sys.prefix) / "bin" / "fedretrain", "--help"], check=True, stdout=subprocess.DEVNULL)


def check_bundle(checkout: Path) -> None:
    """The bundle holds the four code folders alone, and has one hash wherever and however often it is built."""
    from flwr.cli.build import build_fab_from_disk

    from fedretrain.bundle import build_bundle

    built = [build_bundle(Path(name)) for name in ("first", "second")]
    from_checkout = build_fab_from_disk(checkout)
    files = zipfile.ZipFile(io.BytesIO(from_checkout)).namelist()
    foreign = [f for f in files if f.split("/")[0] not in {*FOLDERS, "pyproject.toml", ".info"}]
    if foreign or {f.split("/")[0] for f in files} < set(FOLDERS):
        sys.exit(f"the bundle holds more or less than the four code folders: {foreign or files}")
    contents = {path.read_bytes() for path, _ in built} | {from_checkout}
    if len(contents) != 1:
        sys.exit(f"the bundle differs between builds: {[digest for _, digest in built]}")
    sys.stdout.write(f"bundle sha256 {built[0][1]}, {len(files)} files\n")


if __name__ == "__main__":
    check_wheel(Path(sys.argv[1]))
    check_bundle(Path(sys.argv[1]))
    sys.stdout.write("wheel and bundle are as they should be\n")
