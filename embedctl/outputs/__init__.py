"""Step 6. Vectors become Parquet: a folder of parts, one file, or JSON lines. Whole or not at all."""

from embedctl.outputs.folder import FAILURES as FAILURES
from embedctl.outputs.folder import RECORD as RECORD
from embedctl.outputs.folder import STATE_FOLDER as STATE_FOLDER
from embedctl.outputs.folder import FolderOutput as FolderOutput
from embedctl.outputs.folder import lock_of as lock_of
from embedctl.outputs.folder import part_name as part_name
from embedctl.outputs.folder import parts_of as parts_of
from embedctl.outputs.output import OUTPUT_MODE as OUTPUT_MODE
from embedctl.outputs.output import Existing as Existing
from embedctl.outputs.output import Finished as Finished
from embedctl.outputs.output import Output as Output
from embedctl.outputs.output import OutputRequest as OutputRequest
from embedctl.outputs.output import Record as Record
