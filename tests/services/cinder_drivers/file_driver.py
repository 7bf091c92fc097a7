"""A Cinder volume driver that keeps volumes as sparse files: for tests of the API, not for data anyone wants back."""

import os
from pathlib import Path

from cinder.volume import driver

FOLDER = Path(os.environ["CLOUDCORE_VOLUMES"])


class FileDriver(driver.VolumeDriver):
    """Every volume is one file that the local QEMU opens by its path."""

    VERSION = "1"

    def do_setup(self, context):
        """Nothing to set up."""

    def check_for_setup_error(self):
        """Nothing to check."""

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "cloudcore tests",
            "driver_version": self.VERSION,
            "storage_protocol": "file",
            "total_capacity_gb": 1000,
            "free_capacity_gb": 1000,
            "reserved_percentage": 0,
            "multiattach": True,
        }

    @staticmethod
    def _path(volume):
        return FOLDER / volume["name"]

    def create_volume(self, volume):
        """A sparse file that any user can open."""
        self._path(volume).touch()
        self._path(volume).chmod(0o666)
        self.extend_volume(volume, volume["size"])

    def extend_volume(self, volume, new_size):
        """Grow the file, to GiB."""
        os.truncate(self._path(volume), new_size << 30)

    def delete_volume(self, volume):
        """Remove the file."""
        self._path(volume).unlink(missing_ok=True)

    def copy_image_to_volume(self, context, volume, image_service, image_id, disable_sparse=False):
        """Write the image over the file's beginning."""
        with self._path(volume).open("r+b") as file:
            image_service.download(context, image_id, file)

    def create_export(self, context, volume, connector):
        """Files need no export."""

    def ensure_export(self, context, volume):
        """Files need no export."""

    def remove_export(self, context, volume):
        """Files need no export."""

    def initialize_connection(self, volume, connector):
        """Where the file is, and something that must never be logged."""
        return {
            "driver_volume_type": "local",
            "data": {"device_path": str(self._path(volume)), "auth_password": "backend-password"},
        }

    def terminate_connection(self, volume, connector, **kwargs):
        """Nothing to close."""
