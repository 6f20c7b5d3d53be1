"""User vectors as two numpy files, the form of the RecSys Challenge 2025."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.disk import file_in_one_step, refusals
from peterrec.service.errors import UsersNotNumbered

CLIENT_IDS = "client_ids.npy"
EMBEDDINGS = "embeddings.npy"


def write_numpy(folder: Path) -> None:
    """Join the parts of a folder to ``client_ids.npy`` int64 [N] and ``embeddings.npy`` float16.

    The parts are removed once both are on the disk. Run again after a kill, it does the rest.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        return
    with refusals(folder, doing="read"):
        files = [pq.ParquetFile(part) for part in parts]
    count = sum(file.metadata.num_rows for file in files)
    width = files[0].schema_arrow.field("vector").type.list_size
    for name, header, column in (
        (CLIENT_IDS, _header(np.dtype(np.int64), (count,)), _client_ids),
        (EMBEDDINGS, _header(np.dtype(np.float16), (count, width)), _embeddings),
    ):
        with file_in_one_step(folder / name) as partial, partial.open("wb") as out:
            np.lib.format.write_array_header_2_0(out, header)
            for file in files:
                for batch in file.iter_batches():
                    out.write(column(batch).tobytes())
    for part in parts:
        part.unlink()


def _header(dtype: "np.dtype[np.generic]", shape: tuple[int, ...]) -> dict[str, object]:
    return {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }


def _client_ids(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    users = batch["user_id"]
    try:
        ids: npt.NDArray[np.int64] = users.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        bad = next((user for user in users.to_pylist() if not _is_number(user)), "")
        raise UsersNotNumbered(str(bad)) from error
    return ids


def _is_number(user: str | int) -> bool:
    try:
        return -(1 << 63) <= int(user) < 1 << 63
    except ValueError:
        return False


def _embeddings(batch: pa.RecordBatch) -> npt.NDArray[np.float16]:
    vectors: npt.NDArray[np.float32] = batch["vector"].flatten().to_numpy()
    return vectors.astype(np.float16)
