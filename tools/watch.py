"""Watch a folder of runs in a browser: python tools/watch.py --runs output [--port 8765].

Serves the page of tools/report.py on this machine only, with the progress of a sweep, the time left and failures. The
page renews itself while runs go on; nothing is written. Ctrl-C ends it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.report.live import serve


def main():
    parser = Parser(__doc__)
    parser.add_argument("--runs", required=True, help="a folder with run folders, at any depth")
    parser.add_argument("--figures", default="figures", help="a folder with figures, if any (default: figures)")
    parser.add_argument("--port", type=int, default=8765, help="0 for any free port (default: 8765)")
    args = parser.parse_args()
    with serve(args.runs, args.port, args.figures) as server:
        host, port = server.server_address
        print(f"{args.runs}: http://{host}:{port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
