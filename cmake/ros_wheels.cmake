# The ROS 2 wheels on PyPI carry one path of the machine they were built on: the Python and NumPy headers in the exported
# targets of every message package. CMake stops at a missing include folder, so drop them (this package finds its own).
# Changes nothing on a ROS 2 distribution, where no such path occurs.
function(_ausm_drop_wheel_build_paths)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(includes ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(includes AND target MATCHES "__rosidl_generator_py$")
      list(FILTER includes EXCLUDE REGEX "^/opt/python/")
      set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${includes}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL _ausm_drop_wheel_build_paths)  # after every find_package of this folder
