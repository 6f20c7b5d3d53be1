"""Start the device process as the supervisor does, with settings from the environment."""

from peterrec.service.processes.device_process import run_device
from peterrec.service.settings import read_settings

if __name__ == "__main__":
    run_device(read_settings())
