# What stands in the files of /etc/zkmw.
echo ZKMW_SLOTS=0 >/etc/zkmw/worker-bad.env
systemctl start zkmw-worker@bad 2>/dev/null
sleep 2.5
check 'a bad configuration is not restarted' \
    '[[ "$(prop zkmw-worker@bad ActiveState) $(prop zkmw-worker@bad ExecMainStatus)" == "failed 78" ]] &&
     [[ $(prop zkmw-worker@bad NRestarts) == 0 ]]'
