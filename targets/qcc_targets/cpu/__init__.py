"""The CPU target: an integer graph becomes one shared library and one file of packed weights.

``layout`` gives every tensor a place, ``select`` a kernel to every operation, ``memory`` an offset
to every storage, ``network`` the function that calls the kernels in turn, ``compiler`` the library.
``pieces`` and ``share`` divide the work among threads, ``tuning`` measures what ``select`` estimates.
"""
