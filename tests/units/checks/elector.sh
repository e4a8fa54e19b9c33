# The elector.
e=zkmw-elector@e
echo 'ZKMW_ELECTOR_COMMAND="echo lead $ZKMW_EPOCH; exec sleep 1000"' >/etc/zkmw/elector-e.env
systemctl start $e
check 'the elector leads and has its command run' \
    'within "pgrep -f \"^sleep 1000\" >/dev/null" && [[ $(prop $e StatusText) == leading* ]]'
systemctl stop $e
check 'its command is stopped with it' '! pgrep -f "^sleep 1000" && [[ $(prop $e Result) == success ]]'
