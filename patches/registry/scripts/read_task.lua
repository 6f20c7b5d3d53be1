-- Read one task with its versions, and how many bytes its list of items has.
return {redis.call('HGET', TASKS, arg.field) or '',
        redis.call('HGETALL', VERSIONS), redis.call('HSTRLEN', AVAILABILITY, arg.field)}
