"""On several ranks: what the start of training finds in a blend's data, and which pack tables each rank read whole.

    torchrun start_worker.py FOLDER NAME ...

FOLDER/NAME/blend.json are blends.  Writes FOLDER/RANK.json: of each blend, the fault or nothing, and the tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data_prep.errors import UserError
from data_prep.packing import table
from megatron_ipt.data.stream import BlendStream
from megatron_ipt.mcore import parallel
from megatron_ipt.training.start import verify_data


def main(folder: Path, names: list[str]) -> None:
    found, read, plain = {}, list[str](), table._hash_file

    def noted(path: Path, size: int) -> bytes:
        read.append(path.name)
        return plain(path, size)

    table._hash_file = noted
    with parallel.distributed():
        for name in names:
            read.clear()
            fault = ""
            try:
                verify_data(BlendStream(folder / name / "blend.json"), (), seed=0)
            except UserError as error:
                fault = str(error)
            found[name] = {"fault": fault, "read": list(read)}
        (folder / f"{parallel.place()[0]}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
