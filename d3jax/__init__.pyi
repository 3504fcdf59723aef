"""The front door: what `import d3jax` gives. A line here is all that a new name takes."""

from d3jax import nnx as nnx
from d3jax.batch import Batch as Batch
from d3jax.batch import Field as Field
from d3jax.batch import Schema as Schema
from d3jax.config import Config as Config
from d3jax.data.prepared import Prepared as Prepared
from d3jax.data.prepared import open_prepared as open_prepared
from d3jax.errors import CheckpointError as CheckpointError
from d3jax.errors import ConfigError as ConfigError
from d3jax.errors import D3jaxError as D3jaxError
from d3jax.errors import DataError as DataError
from d3jax.errors import OutputError as OutputError
from d3jax.errors import Preempted as Preempted
from d3jax.errors import TrainingError as TrainingError

__version__: str
