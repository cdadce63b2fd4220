"""Writes the files beside it: what `albireo-run systemd install --socket` writes for an installation in /opt/albireo
that serves the bundled model. `python tools/systemd/render.py` after a change of `albireo/systemd/templates/`."""

from pathlib import Path

from albireo.systemd.units import ServiceSettings, render

if __name__ == "__main__":
    for name, text in render(ServiceSettings()).items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
