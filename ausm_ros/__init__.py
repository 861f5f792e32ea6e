"""ROS 2 side of AUSM. Its modules come first; `ausm_ros.msg` and `ausm_ros.srv` are compiled at installation.

The installed package has the generated code and these modules in one folder and needs none of this; run from the source
tree, the installed folder is searched after this one, so that edited modules work with the installed messages.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
