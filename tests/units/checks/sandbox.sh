# Drop-ins that the worker's unit names.
raw='python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"'
check 'a task has no raw sockets' '! task "$raw" 2>/dev/null'
dropin $w CapabilityBoundingSet=CAP_NET_RAW AmbientCapabilities=CAP_NET_RAW
systemctl restart $w
check 'with the drop-in it has' 'task "$raw"'
undo $w
systemctl stop $w

useradd --system taskuser
rm -f /run/zkmw-worker-w7
dropin $w DynamicUser=no User=taskuser NoNewPrivileges=no RestrictSUIDSGID=no
systemctl start $w
check 'a fixed account' '[[ $(task "id -un") == taskuser ]]'
check 'has no new privileges either' '[[ $(task "grep NoNewPrivs /proc/self/status") == NoNewPrivs:*1 ]]'
systemctl stop $w
undo $w
systemctl start $w
check 'and back' '[[ $(task "id -un") == zkmw-w-w7 ]]'
