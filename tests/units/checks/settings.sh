# The files of /etc/zkmw.

bad=zkmw-worker@bad
echo ZKMW_SLOTS=0 >/etc/zkmw/worker-bad.env
systemctl start $bad 2>/dev/null
check 'a bad value' "ends $bad 78 \"slots: '0'\""
echo ZKMW_SLOT=3 >/etc/zkmw/worker-bad.env
systemctl restart $bad 2>/dev/null
check 'a variable that is no setting' "ends $bad 78 'did you mean ZKMW_SLOTS'"
none=zkmw-elector@none
: >/etc/zkmw/elector-none.env
systemctl start $none 2>/dev/null
check 'an elector without a command' "ends $none 78 ZKMW_ELECTOR_COMMAND"

# Only root may read it.
echo 'slots = 37' >/etc/zkmw/zkmw.toml
chmod 600 /etc/zkmw/zkmw.toml
systemctl restart $w
check 'a zkmw.toml that is only for root' 'within "zkmw status --config /dev/null | grep -q \"37 slots\""'
check "is there for a task's own zkmw" 'task "zkmw status" >/dev/null'
rm /etc/zkmw/zkmw.toml
systemctl restart $w

# Refused by an ACL: a person may mend that, so it is tried again, but less and less often.
zkmw submit --root /locked --auth digest:a:b --detach true >/dev/null
locked=zkmw-worker@locked
echo ZKMW_ROOT=/locked >/etc/zkmw/worker-locked.env
systemctl start $locked
sleep 10
check 'a refused worker (77) is restarted with a growing backoff' \
    'journalctl -u $locked | grep -q "ends with code 77 in 4 s" && (($(prop $locked NRestarts) <= 3))'
check 'and says so' '[[ $(prop $locked StatusText) == "failed with code 77"* ]]'
begin=$SECONDS
systemctl stop $locked
check 'it is stopped at once' '((SECONDS - begin < 3))'
