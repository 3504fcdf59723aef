"""The front door: what `import d3jax` gives. A line here is all that a new name takes."""

from d3jax import nnx as nnx
from d3jax.batch import Batch as Batch
from d3jax.batch import Field as Field
from d3jax.batch import Schema as Schema
from d3jax.config import Config as Config
from d3jax.data.format import Format as Format
from d3jax.data.prepared import Prepared as Prepared
from d3jax.data.prepared import open_prepared as open_prepared
from d3jax.errors import CheckpointError as CheckpointError
from d3jax.errors import ConfigError as ConfigError
from d3jax.errors import D3jaxError as D3jaxError
from d3jax.errors import DataError as DataError
from d3jax.errors import OutputError as OutputError
from d3jax.errors import Preempted as Preempted
from d3jax.errors import TrainingError as TrainingError
from d3jax.export import Exported as Exported
from d3jax.predictor import Embeddings as Embeddings
from d3jax.predictor import Predictor as Predictor
from d3jax.trained import InspectedRows as InspectedRows
from d3jax.trained import RunEvaluation as RunEvaluation
from d3jax.trained import TrainedRun as TrainedRun
from d3jax.trained import load as load
from d3jax.trained import train as train
from d3jax.training.metrics import Evaluation as Evaluation
from d3jax.training.metrics import Metrics as Metrics
from d3jax.unknown import Unknown as Unknown

__version__: str
