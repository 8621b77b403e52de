"""Arrays in device memory, as the engines read them; the home of this is `flamingo_rt.device_arrays`."""

from flamingo_rt.device_arrays import DeviceArray, device_array, is_device_array

__all__ = ["DeviceArray", "device_array", "is_device_array"]
