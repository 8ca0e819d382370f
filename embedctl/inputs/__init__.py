"""Step 1. Files, globs, folders and stdin become rows, a block at a time. One file per format."""

from embedctl.inputs.block import ALIKE as ALIKE
from embedctl.inputs.block import REASONS as REASONS
from embedctl.inputs.block import Block as Block
from embedctl.inputs.block import ReadOptions as ReadOptions
from embedctl.inputs.block import Reason as Reason
from embedctl.inputs.query import Query as Query
from embedctl.inputs.query import asked as asked
from embedctl.inputs.source import FileSize as FileSize
from embedctl.inputs.source import Source as Source
from embedctl.inputs.source import open_input as open_input
from embedctl.inputs.source import open_query as open_query
