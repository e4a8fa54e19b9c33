# The watchdog.
dropin $w WatchdogSec=6
systemctl restart $w
old=$(prop $w MainPID)
kill -STOP "$old"
check 'the watchdog ends a worker that is suspended, and another is started' \
    'within "[[ \$(prop $w MainPID) != $old && \$(prop $w ActiveState) == active ]]" &&
     journalctl -u $w | grep -q "Watchdog timeout"'
undo $w
