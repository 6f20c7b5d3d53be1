-- Read everything that replicas serve by.
return {redis.call('GET', REVISION) or '0', last_mark(), redis.call('HGETALL', TASKS),
        redis.call('HGETALL', API_KEYS)}
