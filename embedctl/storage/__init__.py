"""Durable files, locks, caches and indexes: all that embedctl keeps on a disk goes through here."""

from embedctl.storage.disk import DISK as DISK
from embedctl.storage.disk import Buffer as Buffer
from embedctl.storage.disk import Disk as Disk
from embedctl.storage.files import LEFTOVER_S as LEFTOVER_S
from embedctl.storage.files import TEMPORARY_PREFIX as TEMPORARY_PREFIX
from embedctl.storage.files import AtomicFile as AtomicFile
from embedctl.storage.files import check_own as check_own
from embedctl.storage.files import check_own_folder as check_own_folder
from embedctl.storage.files import paths_in as paths_in
from embedctl.storage.files import private_folder as private_folder
from embedctl.storage.files import publish as publish
from embedctl.storage.files import remove_leftovers as remove_leftovers
from embedctl.storage.files import remove_tree as remove_tree
from embedctl.storage.files import replace as replace
from embedctl.storage.files import set_aside as set_aside
from embedctl.storage.files import size_of as size_of
from embedctl.storage.small_files import SEALED_MOUNTS as SEALED_MOUNTS
from embedctl.storage.small_files import SmallFile as SmallFile
from embedctl.storage.small_files import exposure_to_others as exposure_to_others
from embedctl.storage.small_files import open_small as open_small
from embedctl.storage.small_files import read_small as read_small
