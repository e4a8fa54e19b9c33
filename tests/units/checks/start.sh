# Starting, without an ensemble and with one.
e=zkmw-elector@e
echo 'ZKMW_ELECTOR_COMMAND="echo lead $ZKMW_EPOCH; exec sleep 1000"' >/etc/zkmw/elector-e.env
all() { [[ $(prop $m $1) == $2 && $(prop $w $1) == $2 && $(prop $e $1) == $2 ]]; }
systemctl start --no-block $m $w $e
check 'without an ensemble all are ready at once, for the boot must not wait' \
    'within "all ActiveState active" && [[ -z $(systemctl list-jobs --no-legend zkmw-[mwe]\*) ]]'
check 'and say what they wait for' 'within "all StatusText \"waiting for the ensemble*127.0.0.1:2181*\""'
systemctl start zookeeper
check 'STATUS of the master' 'within "[[ \$(prop $m StatusText) == leading* ]]"'
check 'STATUS of the worker' 'within "[[ \$(prop $w StatusText) == \"registered as w7~\"* ]]"'
check 'STATUS of the elector' 'within "[[ \$(prop $e StatusText) == leading* ]]"'
check 'nobody was restarted' 'all NRestarts 0'
systemctl stop $e
# All that systemd adds to Type=notify by itself; said all the same, so that nobody opens it in passing.
for unit in $m $w $e; do
    check "$unit says who may notify" 'systemctl cat $unit | grep -qx NotifyAccess=main'
done
