"""Images a second from a loopback server: ``objrec`` with all its checks beside img2dataset.

    python -m venv PEER && PEER/bin/pip install img2dataset
    python benchmarks/ingest_throughput.py --peer PEER/bin/python [--count 5000] [--rounds 3]

Both download the same list of about 30 kB JPEGs and write them as files. img2dataset runs with two processes, resizing
off, at each thread count given, in two ways: as it comes (``encode``: decoded and encoded again) and with
``disable_all_reencoding`` (``raw``: nothing is looked at). objrec decodes every image to its end, hashes it, compares
it with all others and keeps a row for each. Rounds are interleaved. ``wall`` is the whole command; ``span`` is from the
first to the last request that the server saw, without anyone's start-up; ``CPU`` is what the command and its processes
spent, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = """
import sys
from img2dataset import download
if __name__ == "__main__":
    url_list, out, threads, way, shard = sys.argv[1:]
    download(url_list=url_list, input_format="csv", url_col="url", output_folder=out, output_format="files",
             processes_count=2, thread_count=int(threads), resize_mode="no", number_sample_per_shard=int(shard),
             disable_all_reencoding=way == "raw", enable_wandb=False)
"""


def run_peer(python: str, urls: Path, out: Path, threads: int, way: str, count: int) -> int:
    script = out.parent / "peer.py"
    script.write_text(PEER)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [python, str(script), str(urls), str(out), str(threads), way, str(count // 2)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return len(list(out.rglob("*.jpg")))


def run_objrec(urls: Path, out: Path, count: int) -> int:
    overrides = [
        f"raw_data_dir={out}", f"cache_dir={out.parent / 'cache'}", "source=urls", f"source.path={urls}",
        f"ingest.num_images={count // 2}", "ingest.allow_private_addresses=true", "ingest.host_rate=null",
        "ingest.connections=32", "ingest.connections_per_host=32",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run(
        [sys.executable, "-m", "objrec.steps.ingest", *overrides],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return len(list(out.rglob("*.jpg")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of an environment with img2dataset")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--images", type=Path, default=Path(tempfile.gettempdir()) / "objrec-bench-images")
    options = parser.parse_args()

    server = subprocess.Popen(
        [sys.executable, HERE / "image_server.py", options.images, str(options.count)], stdout=subprocess.PIPE
    )
    work = Path(tempfile.mkdtemp())
    try:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        urls = work / "urls.csv"
        with urls.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["url", "class"])
            rows.writerows([f"{base}/{i}.jpg", f"class{i % 2}"] for i in range(options.count))
        runs = {("objrec", 32, "checked"): lambda out: run_objrec(urls, out, options.count)} | {
            ("img2dataset", threads, way): (
                lambda out, t=threads, w=way: run_peer(options.peer, urls, out, t, w, options.count)
            )
            for way in ("encode", "raw")
            for threads in options.threads
        }
        rates: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                shutil.rmtree(work / "cache", ignore_errors=True)
                started, before = time.perf_counter(), sum(os.times()[2:4])
                written = run(work / "out")
                wall, cpu = time.perf_counter() - started, sum(os.times()[2:4]) - before
                assert written == options.count, f"{name} wrote {written}"
                with urllib.request.urlopen(f"{base}/span") as reply:
                    span = float(reply.read())
                rates[name].append((options.count / wall, options.count / span, cpu / options.count * 1000))
                print(
                    name,
                    f"wall {options.count / wall:.0f}/s, span {options.count / span:.0f}/s, CPU {cpu:.1f} s",
                    file=sys.stderr,
                )
        print("| program | threads | images are | wall, images/s | span, images/s | CPU ms an image |")
        print("| --- | --- | --- | --- | --- | --- |")
        for (program, threads, way), found in rates.items():
            wall, span, cpu = zip(*found, strict=True)
            cells = [f"{statistics.median(x):.0f} ({min(x):.0f}-{max(x):.0f})" for x in (wall, span)]
            cells.append(f"{statistics.median(cpu):.2f} ({min(cpu):.2f}-{max(cpu):.2f})")
            print(f"| {program} | {threads} | {way} | {cells[0]} | {cells[1]} | {cells[2]} |")
    finally:
        server.terminate()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
