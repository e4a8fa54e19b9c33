# Starting, without an ensemble and with one.
systemctl start --no-block $m $w
sleep 1.5
check 'without an ensemble a unit is being started, not failed' '[[ $(prop $w ActiveState) == activating ]]'
systemctl start zookeeper
check 'master and worker become active by themselves' \
    'within "[[ \$(prop $m ActiveState)\$(prop $w ActiveState) == activeactive ]]"'
check 'STATUS of the master' 'within "[[ \$(prop $m StatusText) == leading* ]]"'
check 'STATUS of the worker' 'within "[[ \$(prop $w StatusText) == \"registered as w7~\"* ]]"'
# All that systemd adds to Type=notify by itself; said all the same, so that nobody opens it in passing.
for unit in $m $w zkmw-elector@e; do
    check "$unit says who may notify" 'systemctl cat $unit | grep -qx NotifyAccess=main'
done
