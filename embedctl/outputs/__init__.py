"""Step 6. Vectors become Parquet: a folder of parts, one file, or JSON lines. Whole or not at all."""

from embedctl.outputs.folder import FAILURES as FAILURES
from embedctl.outputs.folder import OUTPUT_MODE as OUTPUT_MODE
from embedctl.outputs.folder import PART_PATTERN as PART_PATTERN
from embedctl.outputs.folder import RECORD as RECORD
from embedctl.outputs.folder import STATE_FOLDER as STATE_FOLDER
from embedctl.outputs.folder import Finished as Finished
from embedctl.outputs.folder import FolderOutput as FolderOutput
from embedctl.outputs.folder import Output as Output
from embedctl.outputs.folder import Record as Record
from embedctl.outputs.folder import check_space as check_space
from embedctl.outputs.folder import part_name as part_name
