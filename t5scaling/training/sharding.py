"""The device mesh and where arrays live on it: data parallel over all devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5scaling.errors import UserError


def make_mesh() -> Mesh:
    """A mesh of all devices with the one axis "data"."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same number of rows."""
    devices = mesh.shape["data"]
    if batch_size < 1 or batch_size % devices:
        raise UserError(
            f"BATCH_SIZE={batch_size} cannot be split over {devices} devices; nearest that can: "
            f"{max(1, round(batch_size / devices)) * devices}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows (B/processes, L) -> global arrays (B, L) over the data axis."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
