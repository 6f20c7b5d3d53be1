-- Read the API keys, the audit trail and the tenants, for an export.
return {redis.call('GET', REVISION) or '0', redis.call('HGETALL', API_KEYS),
        redis.call('XRANGE', CHANGES, '-', '+'), redis.call('HGETALL', TENANTS)}
