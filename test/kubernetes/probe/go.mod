module ripstop/test/kubernetes/probe

go 1.26.0
