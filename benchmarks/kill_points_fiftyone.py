"""The commands of ``kill_points.py`` that run in FiftyOne, on a database of their own."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pymongo
import pymongo.monitoring
from kill_points import Command, Point

CHANGES = {"insert", "update", "delete", "findAndModify", "bulkWrite", "create", "drop"}
"""Commands to the database that change it."""
COMPARED = ("label", "bounding_box", "mask", "confidence", "index", "tags", "points")
"""What is compared of a label: all but identities, times and names of runs."""


class Database:
    """A MongoDB of FiftyOne's own program, in a folder, on this machine alone.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        package = importlib.util.find_spec("fiftyone")  # which is imported when the server runs
        if package is None or package.origin is None:
            raise SystemExit("FiftyOne is not installed: pip install 'efficientsam3[fiftyone]'")
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"mongodb://127.0.0.1:{port}"
        self.command = [
            *(str(Path(package.origin).parent / "db/bin/mongod"), "--dbpath", str(folder)),
            *("--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=120_000) as client:
            client.admin.command("ping")

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


class FiftyOneCommand(Command):
    """A run on a dataset that is made anew for each point."""

    kinds = ("query", "query", "query", "time")
    database: Database
    """One for all commands of the process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not hasattr(FiftyOneCommand, "database"):
            os.environ["FIFTYONE_CONFIG_PATH"] = str(folder.parent / "config.json")
            FiftyOneCommand.database = Database(folder.parent / "database")
        os.environ["FIFTYONE_DATABASE_URI"] = FiftyOneCommand.database.uri
        os.environ["FIFTYONE_DATABASE_NAME"] = "kill-points"
        os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
        os.environ["FIFTYONE_SHOW_PROGRESS_BARS"] = "false"
        import fiftyone  # connects to the database

        self.fo = fiftyone

    def samples(self) -> list[Any]:
        """The samples of a new dataset."""
        raise NotImplementedError

    def start(self, dataset: Any) -> Any:
        """Start the run; gives its steps.

        Args:
            dataset: The dataset.
        """
        raise NotImplementedError

    def act(self, out: Path) -> int:
        """Do the run on the dataset in this process.

        Args:
            out: Not used: results are in the database.
        """
        from fiftyone_esam3.runs.steps import finish

        summary = finish(self.start(self.fo.load_dataset(self.name)))
        return 1 if summary["failed"] else 0

    def warm(self, out: Path) -> None:
        """Make the dataset, do the run once, and make it anew.

        Args:
            out: Not used.
        """
        self.reset(out)
        self.act(out)

    def reset(self, out: Path) -> None:
        """Make the dataset anew.

        Args:
            out: Not used.
        """
        if self.fo.dataset_exists(self.name):
            self.fo.delete_dataset(self.name)
        self.fo.Dataset(self.name, persistent=True).add_samples(self.samples())

    def results(self, out: Path) -> dict[str, str]:
        """A digest of the labels of each sample and each frame.

        Args:
            out: Not used.
        """
        dataset = self.fo.load_dataset(self.name)
        dataset.reload()
        found = {}
        for sample in dataset:
            name = Path(sample.filepath).name
            found[name] = _digest(sample)
            if dataset.media_type == "video":
                found |= {f"{name} {n}": _digest(frame) for n, frame in sample.frames.items()}
        return found

    def enter_child(self, point: Point | None, count: list[int]) -> None:
        """Connect a forked process to the database, and watch its commands.

        Args:
            point: Where the process ends itself.
            count: Its first entry becomes the number of commands that change the database.
        """
        import fiftyone.core.odm.database as odm
        import fiftyone.factory.repo_factory as factory

        class Listener(pymongo.monitoring.CommandListener):
            def started(self, event: Any) -> None:
                if event.command_name in CHANGES:
                    count[0] += 1
                    if point is not None and point.kind == "query" and count[0] == point.at:
                        os.kill(os.getpid(), signal.SIGKILL)

            def succeeded(self, event: Any) -> None:
                pass

            def failed(self, event: Any) -> None:
                pass

        pymongo.monitoring.register(Listener())
        odm._disconnect()
        odm.establish_db_conn(self.fo.config)
        # What holds a connection of the process that this one was forked from.
        factory._db = None
        factory.RepositoryFactory.repos.clear()


def _digest(document: Any) -> str:
    """A digest of the labels of a sample or a frame."""
    digest = hashlib.sha256()
    for name in sorted(document.field_names):
        value = document[name]
        for label in getattr(value, "detections", ()):
            digest.update(name.encode())
            for key in COMPARED:
                part = label[key] if label.has_field(key) else None
                digest.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return digest.hexdigest()


class SegmentConcepts(FiftyOneCommand):
    name = "segment_concepts"

    def samples(self) -> list[Any]:
        """Pictures, one of them with a label of a person."""
        files = sorted((self.folder / "photos").iterdir())
        human = self.fo.Detection(label="mine", bounding_box=[0.1, 0.1, 0.2, 0.2])
        made = [self.fo.Sample(filepath=str(path)) for path in files]
        made[0]["human"] = self.fo.Detections(detections=[human])
        return made

    def start(self, dataset: Any) -> Any:
        """Segment two concepts.

        Args:
            dataset: The dataset.
        """
        from fiftyone_esam3.runs.segment import segment_concepts

        model = str(self.folder / "tiny")
        limits = {"threshold": 0.0, "max_instances": 3, "device": "cpu"}
        return segment_concepts(dataset, ["person", "bus"], model=model, **limits)


class TrackVideo(FiftyOneCommand):
    name = "track_video"

    def samples(self) -> list[Any]:
        """Two clips."""
        return [self.fo.Sample(filepath=str(self.folder / f"{n}.mp4")) for n in (0, 1)]

    def start(self, dataset: Any) -> Any:
        """Track one concept.

        Args:
            dataset: The dataset.
        """
        from fiftyone_esam3.runs.track import track_video

        model = str(self.folder / "tiny")
        return track_video(dataset, ["person"], model=model, threshold=0.3, device="cpu")


COMMANDS = {c.name: c for c in (SegmentConcepts, TrackVideo)}
