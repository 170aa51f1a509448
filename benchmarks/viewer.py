"""`wsi-pipeline view` on a slide of 23 gigapixels: first picture, tiles under load, memory.

The command itself runs as a process pinned to one core (``--core``); browser and clients run on the
others. The slide (`slides.make_giga`, 150,000 x 153,000 px, pyramid 1, 4, 16, 64 of 256 px JPEG
tiles, 4:2:0, quality 80) is opened and read as any other, through its directory of 350,000 tiles,
and every tile asked for is decoded, resampled and encoded on its own.

Realistic: content (real H&E with grain), bytes per tile, size of the directory, work per tile. Not:
the file has 13 MB, so the operating system has it in memory, as it has a slide's part that was
looked at before; a cold disk comes on top. All of it is tissue; glass, half of a usual slide, is
cheaper. Decoded file tiles of one client's view help its next tile, as when a person pans.

Clients keep their connection and are one process without threads, so that they do not wait for each
other. ``steady``: 8 clients that each ask for 10 tiles per second, at random moments (exponential
pauses), as people who pan without end. ``saturating``: 8 clients that ask for the next tile as soon
as they have one, so that 8 tiles are always waited for and the latency is that of 8 tiles. Each
client pans over a region of its own at one of the zoom levels 0 to 5. On a machine that other work
shares, ``--nice -10`` (as root) gives the server more of its core, and the clients do not wait for
theirs; how much of its core the server used is in the result.

    python benchmarks/viewer.py [--rounds 5]
"""

import argparse
import http.client
import os
import platform
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import slides

sys.path.append(str(Path(__file__).parents[1]))
from tests.helpers.browser import Browser
from tests.helpers.html_pages import CHROMIUM
from tiling.files import write_json
from tiling.slide import open_slide
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.heatmaps.files import write_heatmap
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.pyramid import TILE_PX, count_zooms

RESULT = Path(__file__).parent / "results" / "viewer.json"
COMMAND = [sys.executable, "-c", "from wsi_pipeline.cli.app import entry; entry()"]
TARGETS = {"first_picture_s": 1.0, "tile_p95_ms": 20.0, "cached_per_s": 500.0}
N_CLIENTS = 8
ZOOMS = (0, 1, 2, 3, 4, 5)
PAUSE_S = 0.1  # mean, of a steady client
GIGA = ("giga_a", "giga_b", "giga_c")  # the same file under three names
MAP_PX = 250  # level-0 px of a heatmap pixel
# Times of the page, without asking it: drawn pictures, and when nothing is awaited any more.
WATCH = """
window.seen = { first: 0, all: 0 };
const drawImage = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (picture, ...place) {
  if (picture instanceof ImageBitmap || picture instanceof HTMLImageElement)
    window.seen.first ||= performance.now();
  return drawImage.call(this, picture, ...place);
};
"""
IS_DRAWN = """
window.viewer && viewer.state.slide && window.seen.first && !pictures.waiting.size
&& !pictures.running && viewer.known.maps['drawn/scores'] && !values.waiting.size && !values.running
"""


# ------------------------------------------------------------ the run and its server


def draw_run(folder, slide):
    """Draw a run: the giga slide under three names, real slides, a heatmap of the first."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    paths = dict.fromkeys(GIGA, slide) | find_real_slides()
    rows = [f"{path},{name}" for name, path in paths.items()]
    run.manifest.write_text("\n".join(["slide,slide_id", *rows]) + "\n")
    width, height = slides.GIGA_SIZE
    values = np.random.default_rng(0).random((-(-height // MAP_PX), -(-width // MAP_PX)))
    heatmap = Heatmap(values.astype(np.float32), (MAP_PX, MAP_PX), slides.GIGA_SIZE)
    path = run.heatmap("drawn", GIGA[0])
    path.parent.mkdir(parents=True)
    write_heatmap(path, heatmap, mpp=(0.25, 0.25), name=GIGA[0])
    return run.path, paths


def find_real_slides():
    """The public slides that are there, by name."""
    folder = slides.SOURCE.parent
    names = ("CMU-1-Small-Region.svs", "nuclei-dapi.ndpi", "tiny-sm.dcm")
    return {name.split(".")[0]: folder / name for name in names if (folder / name).is_file()}


class Server:
    """The command, or a script that prints an address as it does, in a process on one core."""

    def __init__(self, run, core, *, memory=512, script=()):
        command = [*COMMAND, "view", str(run), "--memory", str(memory)]
        self._process = subprocess.Popen(
            [sys.executable, *script] if script else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        self.url = self._process.stdout.readline().split()[1]

    def cpu_seconds(self):
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def mib(self, name):
        """Memory now (VmRSS), or at most so far (VmHWM)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))

    def close(self):
        """End it."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def serve(run, core, **options):
    """Run a server meanwhile."""
    server = Server(run, core, **options)
    try:
        yield server
    finally:
        server.close()


# ------------------------------------------------------------ clients


class Client:
    """One kept connection that asks for tiles one after the other."""

    def __init__(self, url, tiles):
        parts = urlsplit(url)
        self.tiles = iter(tiles)
        self.base, self.host = parts.path, parts.netloc
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.due, self._answer, self._length = 0.0, 0.0, b"", 0

    def ask(self, now):
        """Ask for the next tile; False where there is none."""
        tile = next(self.tiles, None)
        if tile is None:
            return False
        head = f"GET {self.base}tile/{tile} HTTP/1.1\r\nHost: {self.host}\r\n"
        # As long as what Chromium sends.
        head += "Accept: */*\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        head += "Accept-Language: en-GB,en;q=0.9\r\nConnection: keep-alive\r\n"
        head += "Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Dest: empty\r\n"
        head += f"Referer: http://{self.host}/\r\nUser-Agent: {'x' * 100}\r\n\r\n"
        self.began, self._answer, self._length = now, b"", 0
        self.socket.sendall(head.encode())
        return True

    def take(self):
        """Take what has come; True once the answer is whole."""
        self._answer += self.socket.recv(1 << 18)
        if not self._length and b"\r\n\r\n" in self._answer:
            head = self._answer.partition(b"\r\n\r\n")[0]
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(self._answer.decode(errors="replace"))
            [length] = [
                line.split(b":")[1]
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            ]
            self._length = len(head) + 4 + int(length)
        return bool(self._length) and len(self._answer) >= self._length


def ask_all(server, lists, *, pause=0.0, seed=0):
    """Let one client per list ask for its tiles; the seconds that each tile took."""
    rng = np.random.default_rng(seed)
    took = []
    clients = [Client(server.url, tiles) for tiles in lists]
    with selectors.DefaultSelector() as selector:
        resting = []  # clients
        cpu, start = server.cpu_seconds(), time.perf_counter()
        for client in clients:
            client.due = start + rng.exponential(pause) if pause else start
            resting.append(client)
        while True:
            now = time.perf_counter()
            for client in [one for one in resting if one.due <= now]:
                resting.remove(client)
                if client.ask(time.perf_counter()):
                    selector.register(client.socket, selectors.EVENT_READ, client)
            if not resting and not selector.get_map():
                break
            wait = min((one.due for one in resting), default=now + 1) - time.perf_counter()
            for key, _ in selector.select(max(0.0, wait)):
                if key.data.take():
                    now = time.perf_counter()
                    took.append(now - key.data.began)
                    selector.unregister(key.data.socket)
                    key.data.due = now + (rng.exponential(pause) if pause else 0)
                    resting.append(key.data)
        seconds = time.perf_counter() - start
        cpu = server.cpu_seconds() - cpu
    for client in clients:
        client.socket.close()
    return {
        "median_ms": 1e3 * statistics.median(took),
        "p95_ms": 1e3 * float(np.percentile(took, 95)),
        "p99_ms": 1e3 * float(np.percentile(took, 99)),
        "per_s": len(took) / seconds,
        "cpu_ms": 1e3 * cpu / len(took),
        "share_of_core": cpu / seconds,
        "n": len(took),
    }


def pan(name, zoom, n, *, part=0, n_parts=1, size=slides.GIGA_SIZE):
    """Paths of `n` tiles as a person meets them who pans to and fro; no two parts share any."""
    across, down = (-(-side // (TILE_PX << zoom)) for side in size)
    rows = range(down * part // n_parts, down * (part + 1) // n_parts)
    wide = min(across, max(1, round(n**0.5)))
    first = (across - wide) // 2
    places = [
        (column, row)
        for start in range(first, across, wide)
        for number, row in enumerate(rows)
        for column in list(range(start, min(start + wide, across)))[:: 1 - 2 * (number % 2)]
    ]
    return [f"{name}/{zoom}/{column}/{row}" for column, row in places[:n]]


def divide(name, n, turn, n_turns):
    """Tiles for each client: a zoom level and a part of the slide of its own, new at each turn."""
    lists = []
    for client in range(N_CLIENTS):
        zoom = ZOOMS[client % len(ZOOMS)]
        part = turn * N_CLIENTS + client
        lists.append(pan(name, zoom, n, part=part, n_parts=n_turns * N_CLIENTS))
    return lists


# ------------------------------------------------------------ what is measured


def measure_pages(run, core, rounds):
    """Seconds from navigation to the first tile drawn, and to all; with a server just started."""
    rows = []
    browser = Browser((1200, 800))
    try:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        for _ in range(rounds):
            with serve(run, core) as server:
                for state in ("slide not open", "warm"):
                    browser.open("about:blank")
                    browser.call("Network.clearBrowserCache")
                    browser.open(f"{server.url}#slide={GIGA[0]}")
                    browser.run(f"""new Promise((done) => {{
                      const look = () => {{
                        if ({IS_DRAWN}) {{ window.seen.all = performance.now(); done(); }}
                        else requestAnimationFrame(look);
                      }};
                      look();
                    }})""")
                    rows.append({"state": state} | browser.run("window.seen"))
                browser.open("about:blank")
    finally:
        browser.close()
    return {
        f"{state}, {what}": [row[key] / 1e3 for row in rows if row["state"] == state]
        for state in ("slide not open", "warm")
        for key, what in (("first", "first tile"), ("all", "all tiles and heatmap"))
    }


def measure_tiles(run, core, rounds, n):
    """Latency and rate of tiles: steady, saturating, by zoom, and asked again."""
    found = {}
    for number in range(rounds):
        with serve(run, core) as server:
            for name in GIGA:
                get(server, f"tile/{name}/9/0/0")
            ask_all(server, divide(GIGA[2], 32, 0, 1))  # open, imported, memory in use
            results = {
                "steady": ask_all(server, divide(GIGA[0], n // 2, 0, 2), pause=PAUSE_S),
                "saturating": ask_all(server, divide(GIGA[0], n, 1, 2)),
            }
            for zoom in ZOOMS:
                tiles = [
                    pan(GIGA[1], zoom, n // 4, part=part, n_parts=N_CLIENTS)
                    for part in range(N_CLIENTS)
                ]
                results[f"saturating, zoom {zoom}"] = ask_all(server, tiles)
            [again] = [pan(GIGA[1], 0, n // 4, part=0, n_parts=N_CLIENTS)]
            results["cached"] = ask_all(server, [again * 8] * N_CLIENTS)
            for what, one in results.items():
                found.setdefault(what, []).append(one)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return found


def measure_real(run, core, paths):
    """The same, saturating, for every tile of the real slides."""
    found = {}
    with serve(run, core) as server:
        for name, path in paths.items():
            if name in GIGA:
                continue
            with open_slide(path) as slide:
                size = slide.size
            get(server, f"tile/{name}/{count_zooms(size) - 1}/0/0")
            tiles = [
                f"{name}/{zoom}/{column}/{row}"
                for zoom in range(count_zooms(size) - 1)
                for row in range(-(-size[1] // (TILE_PX << zoom)))
                for column in range(-(-size[0] // (TILE_PX << zoom)))
            ]
            if len(tiles) >= N_CLIENTS:
                lists = [tiles[i::N_CLIENTS] for i in range(N_CLIENTS)]
                found[f"saturating, {name}"] = [ask_all(server, lists)]
    return found


def measure_memory(run, core, budget, n):
    """Memory of the server after it was started, and while ever more tiles are panned over."""
    with serve(run, core, memory=budget) as server:
        get(server, "api/run")
        rows = [{"tiles": 0, "mib": server.mib("VmRSS")}]
        for turn in range(8):
            for name in GIGA:
                ask_all(server, divide(name, n // 8 // len(GIGA) // N_CLIENTS, turn, 8))
            get(server, f"map/{GIGA[0]}/drawn/scores")
            rows.append({"tiles": (turn + 1) * n // 8, "mib": server.mib("VmRSS")})
        return {"budget_mb": budget, "rows": rows, "peak_mib": server.mib("VmHWM")}


def get(server, path):
    """Ask once."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.request("GET", parts.path + path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(body.decode())
    return body


# ------------------------------------------------------------ results


def spread(values, digits):
    """Median, and least to greatest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_table(pages, tiles, memory):
    """Print what docs/speed.md quotes."""
    for what, seconds in pages.items():
        print(f"| {what}, s | {spread(seconds, 2)} |")
    print("| tiles | median, ms | 95th percentile, ms | tiles/s | processor ms per tile |")
    for what, rows in tiles.items():
        cells = [
            spread([row[key] for row in rows], digits)
            for key, digits in (("median_ms", 1), ("p95_ms", 1), ("per_s", 0), ("cpu_ms", 2))
        ]
        print(f"| {what} | {' | '.join(cells)} |")
    for one in memory:
        steps = ", ".join(f"{row['tiles']}: {row['mib']:.0f}" for row in one["rows"])
        print(
            f"| --memory {one['budget_mb']}, MiB by tiles | {steps}; peak {one['peak_mib']:.0f} |"
        )


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=256, help="per client and round")
    parser.add_argument("--panned", type=int, default=24_000, help="tiles for memory")
    parser.add_argument("--core", type=int, default=0, help="of the server")
    parser.add_argument("--nice", type=int, default=0, help="of server and clients; see above")
    parser.add_argument("--slide", type=Path, help="made before by slides.make_giga")
    parser.add_argument("--only", choices=("pages", "tiles", "memory"))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    others = os.sched_getaffinity(0) - {arguments.core}
    os.sched_setaffinity(0, others or {arguments.core})
    load = os.getloadavg()[0]
    os.setpriority(os.PRIO_PROCESS, 0, arguments.nice)  # inherited by the server
    wanted = {"pages", "tiles", "memory"} if arguments.only is None else {arguments.only}
    pages, tiles, memory = {}, {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = folder / "giga.tif"
        if arguments.slide:
            shutil.copy(arguments.slide, slide)
        else:
            slides.make_giga(slide)
        run, paths = draw_run(folder, slide)
        if "pages" in wanted and CHROMIUM is not None:
            pages = measure_pages(run, arguments.core, arguments.rounds)
        if "tiles" in wanted:
            tiles = measure_tiles(run, arguments.core, arguments.rounds, arguments.tiles)
            tiles |= measure_real(run, arguments.core, paths)
        if "memory" in wanted:
            memory = [
                measure_memory(run, arguments.core, budget, arguments.panned)
                for budget in (128, 512)
            ]
    print_table(pages, tiles, memory)
    result = {"benchmark": "viewer", "targets": TARGETS, "load_before": load}
    result |= {"machine": platform.machine(), "python": platform.python_version()}
    write_json(arguments.out, result | {"pages": pages, "tiles": tiles, "memory": memory})


if __name__ == "__main__":
    main()
