"""Files of the historical programs and trained models, as more fixtures to damage."""

from __future__ import annotations

from pathlib import Path

from hostile_fixtures import Fixture, Reader

__all__ = ["add_shared"]


def add_shared(name: str, reader: Reader, shared: Path) -> None:
    """Give the reader called ``name`` what ``shared`` holds of its kind, as often as there are files."""
    fixtures, models = shared / "fixtures", shared / "models"
    found: list[Fixture] = []
    match name:
        case "gguf":
            found += [_alone(path) for path in sorted((fixtures / "gguf-old").glob("*.gguf"))]
            found.append(_folder(fixtures / "gguf-split", "m-00001-of-00003.gguf"))
        case "ggml":
            parts = sorted((fixtures / "ggml-legacy").glob("*.bin*"))
            found += [_alone(path) for path in parts if not path.name.startswith("ggmf2")]
            two = {path.name: path.read_bytes() for path in parts if path.name.startswith("ggmf2")}
            found.append(Fixture(two, min(two)))
        case "torch":
            pth = fixtures / "pth"
            parameters = {"params.json": (pth / "params.json").read_bytes()}
            shards = {path.name: path.read_bytes() for path in sorted(pth.glob("consolidated.*.pth"))}
            found.append(Fixture(shards | parameters, "", (*shards, *parameters)))
            legacy = {"legacy.00.pth": (pth / "legacy.00.pth").read_bytes()}
            second = {"legacy.01.pth": shards["consolidated.01.pth"]}
            found.append(Fixture(legacy | second | parameters, "legacy.00.pth", tuple(legacy)))
            found.append(_folder(models / "stories260K" / "meta"))
        case "huggingface":
            found.append(_folder(models / "stories260K" / "hf"))
    reader.fixtures = [*reader.fixtures, *found]


def _alone(path: Path) -> Fixture:
    return Fixture({path.name: path.read_bytes()}, path.name)


def _folder(path: Path, entry: str = "") -> Fixture:
    return Fixture({it.name: it.read_bytes() for it in sorted(path.iterdir()) if it.is_file()}, entry)
